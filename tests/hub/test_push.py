"""Pushing to the loopback Hub with the genuine client."""

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from hfsae import SAE, TopKSAEConfig


@pytest.fixture
def sae() -> SAE:
    torch.manual_seed(0)
    return SAE.from_config(TopKSAEConfig(d_in=16, n_features=64, k=4, hook_point="transformer.h.1.output"))


def test_a_pushed_sae_comes_back_with_its_card_from_one_commit(hub, sae):
    sae.push_to_hub("tester/small", license="apache-2.0")
    x = torch.randn(5, 16)
    assert torch.equal(SAE.from_pretrained("tester/small").encode(x), sae.encode(x))
    files = hub.repo("tester/small").files()
    assert {"README.md", "config.json", "model.safetensors"} <= files.keys()
    card = files["README.md"].decode()
    assert "library_name: hfsae" in card and 'SAE.from_pretrained("tester/small")' in card
    assert len(hub.requests.matching("POST", r"/api/models/tester/small/commit/")) == 1


def test_an_sae_in_a_subfolder_of_a_branch_comes_back_from_there(hub, sae):
    sae.push_to_hub("tester/zoo", subfolder="resid_post.1/topk", revision="wide")
    loaded = SAE.from_pretrained("tester/zoo", subfolder="resid_post.1/topk", revision="wide")
    assert torch.equal(loaded.W_dec, sae.W_dec)
    assert "model.safetensors" not in hub.repo("tester/zoo").files("main")


def test_what_a_person_wrote_into_the_card_survives_the_next_push(hub, sae):
    from huggingface_hub import HfApi

    sae.push_to_hub("tester/small")
    card = hub.repo("tester/small").files()["README.md"].decode()
    HfApi().upload_file(
        path_or_fileobj=(card + "\n## My notes\n").encode(), path_in_repo="README.md", repo_id="tester/small"
    )
    sae.b_dec.data += 1
    sae.push_to_hub("tester/small")
    assert "## My notes" in hub.repo("tester/small").files()["README.md"].decode()


def test_a_pull_request_leaves_main_alone(hub, sae):
    sae.push_to_hub("tester/small")
    sae.b_dec.data += 1
    info = sae.push_to_hub("tester/small", create_pr=True)
    assert info.pr_url
    assert torch.equal(SAE.from_pretrained("tester/small").b_dec + 1, sae.b_dec)
    assert torch.equal(SAE.from_pretrained("tester/small", revision="refs/pr/1").b_dec, sae.b_dec)


def test_another_model_is_refused_before_its_weights_are_fetched(hub, tmp_path):
    from huggingface_hub import HfApi
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8)).save_pretrained(tmp_path)
    HfApi().create_repo("tester/gpt2")
    HfApi().upload_folder(repo_id="tester/gpt2", folder_path=tmp_path)
    hub.requests.clear()
    with pytest.raises(ValueError, match="holds a 'gpt2' model, not a sparse autoencoder"):
        SAE.from_pretrained("tester/gpt2")
    assert not [request for request in hub.requests.matching(path=r"safetensors")]


def test_a_read_token_cannot_push_and_no_token_is_said(hub, sae):
    with pytest.raises(HfHubHTTPError) as refused:
        sae.push_to_hub("tester/small", token=hub.user.read_token)
    assert hub.user.read_token not in str(refused.value)


def test_saving_does_not_push(sae, tmp_path):
    with pytest.raises(ValueError, match="push_to_hub"):
        sae.save_pretrained(tmp_path, push_to_hub=True)
