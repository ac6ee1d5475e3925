import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfsae import steer
from hfsae.cli import main
from hfsae.identity import weights_sha256
from hfsae.label_file import write_labels
from hfsae.saved.kept_features import SavedFeatures
from tests.analysis.tiny import setting
from tests.dashboard.tiny import saved_sae

STEERED = ["--feature", "5", "7", "--strength", "2", "--strength", "-1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = saved_sae(tmp_path_factory.mktemp("place"))
    opened = SavedFeatures(place / "sae", dataset=str(place / "text.jsonl"), split="train", disable_tqdm=True)
    opened.collection  # noqa: B018  collects
    write_labels(place / "sae" / "labels.json", {5: "the word w3"}, weights_sha256(setting().sae))
    return place


def command(place, output, *more):
    text = ["--dataset", str(place / "text.jsonl"), "--split", "train"]
    return ["steer-model", str(place / "sae"), *STEERED, "--output", str(output), *text, *more]


def test_the_command_writes_a_model_and_says_what_it_does(place, tmp_path, capsys):
    assert main(command(place, tmp_path / "steered")) == 0
    out, err = capsys.readouterr()
    assert "Writing model shards" not in err
    assert "added to transformer.h.1.mlp.c_proj.bias" in out and "perplexity" in out and "raised" in out
    collection = SavedFeatures(place / "sae").collection
    sae, model, _ = setting()
    ids = torch.tensor([[3, 4, 5, 6]])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "steered").eval()
    with torch.no_grad(), steer(model, sae, {5: 2.0, 7: -1.0}, maxima=collection):
        steered = model(ids).logits
    with torch.no_grad():
        difference = loaded(ids).logits - steered
    # Position 0 is steered too, which the hook leaves as it is; the first token is all that it sees.
    assert difference[0, 0].abs().max() > 0.01
    card = (tmp_path / "steered" / "README.md").read_text()
    assert "| 5 | the word w3 |" in card and "| 7 | – |" in card


def test_what_was_written_can_be_pushed(place, tmp_path, hub, capsys):
    assert main(command(place, tmp_path / "steered", "--license", "mit")) == 0
    assert main(["push", str(tmp_path / "steered"), "tester/steered"]) == 0
    assert "pushed to" in capsys.readouterr().out
    from huggingface_hub import ModelCard, hf_hub_download

    card = ModelCard.load("tester/steered")
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    assert "steering" in (card.data.tags or [])
    record = Path(hf_hub_download("tester/steered", "steering.json")).read_text()
    assert str(place) not in record + card.content and json.loads(record)["sae"] is None
    here = AutoModelForCausalLM.from_pretrained(tmp_path / "steered")
    there = AutoModelForCausalLM.from_pretrained("tester/steered")
    assert all(torch.equal(here.state_dict()[name], tensor) for name, tensor in there.state_dict().items())
    assert main(["push", str(tmp_path / "steered"), "tester/steered", "--subfolder", "x"]) == 1
    assert "is a steered model" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_features_are_collected(place, tmp_path, capsys, monkeypatch):
    def never(*_):
        raise AssertionError("features were collected")

    monkeypatch.setattr(SavedFeatures, "collection", property(never))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert main(command(place, tmp_path / "full")) == 1
    assert "holds something already" in capsys.readouterr().err
    assert main(command(place, tmp_path / "new", "--feature", "400", "--strength", "1")) == 1
    assert "from 0 to 39" in capsys.readouterr().err
    for feature, output, message in (("5", "full", "is a folder"), ("400", "page.html", "from 0 to 39")):
        page = ["--feature", feature, "--output", str(tmp_path / output)]
        assert main(["steer", str(place / "sae"), "--report", *page]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strength", "3"], "2 features and 3 strengths"),
        (["--feature", "5"], "name each once"),
        (["--form", "adapter", "--feature", "400", "--strength", "1"], "from 0 to 39"),
    ],
)
def test_a_mistake_is_one_line(place, tmp_path, capsys, options, message):
    assert main(command(place, tmp_path / "steered", *options)) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
