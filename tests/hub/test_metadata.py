"""The front matter: what the Hub filters by is right, figures are plain numbers, paths stay private."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hfsae import JumpReLUSAEConfig, TopKSAEConfig
from hfsae.hub import render_card
from tests.hub.samples import config, metrics, reread, training
from tests.hub_server.cards import problems


def test_its_metadata_finds_the_sae_by_library_base_model_and_dataset():
    data = yaml.safe_load(render_card(config(), repo_id="org/sae", license="mit", language="en").data.to_yaml())
    assert data["library_name"] == "hfsae" and data["pipeline_tag"] == "feature-extraction"
    assert data["base_model"] == "org/lm" and data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["org/corpus"] and data["license"] == "mit" and data["language"] == "en"
    assert {"sparse-autoencoder", "sae", "mechanistic-interpretability", "hfsae", "topk"} <= set(data["tags"])


def test_its_metadata_names_the_adapter_beside_its_base_model():
    card = render_card(config(base_model_adapter="org/lora"), repo_id="org/sae")
    assert yaml.safe_load(card.data.to_yaml())["base_model"] == ["org/lm", "org/lora"]
    assert problems(str(card)) == []
    assert render_card(config(base_model_adapter="./lora")).data.base_model == "org/lm"


def test_the_hub_finds_nothing_wrong_with_its_metadata():
    assert problems(str(render_card(config(), repo_id="org/sae"))) == []
    assert problems(str(render_card(TopKSAEConfig(d_in=8, n_features=32, k=4)))) == []


def test_the_model_index_round_trips_through_eval_results():
    card = render_card(config(), repo_id="org/sae", subfolder="layer_8")
    again = reread(card)
    assert again.data.eval_results == card.data.eval_results and again.data.model_name == "sae/layer_8"
    values = {result.metric_type: result.metric_value for result in again.data.eval_results}
    assert values["l0"] == 4.0 and values["loss_recovered"] == 0.96875 and values["ce_zero"] == 10.75
    first = again.data.eval_results[0]
    assert (first.dataset_type, first.dataset_split, first.dataset_args["n_tokens"]) == (
        "org/corpus",
        "validation",
        50_000,
    )


def test_numpy_and_torch_figures_become_plain_numbers_and_non_finite_ones_go():
    odd = metrics(l0=np.float64(4.5), mse=torch.tensor(2.5), explained_variance=float("nan"), ce_zero=float("inf"))
    odd["protocol"]["n_tokens"] = np.int64(50_000)
    content = str(render_card(config(metrics=odd)))
    assert "!!" not in content and ".nan" not in content and ".inf" not in content
    values = {result.metric_type: result.metric_value for result in ModelCard(content).data.eval_results}
    assert values["l0"] == 4.5 and values["mse"] == 2.5 and not {"explained_variance", "ce_zero"} & values.keys()


@pytest.mark.parametrize("path", ["/data/lm", "./lm", "~/lm", "C:\\models\\lm", "here/is/a/folder"])
def test_a_path_is_never_published_as_a_base_model_or_dataset(path: str):
    content = str(render_card(config(base_model=path, training=training(dataset=path + "/text.jsonl"))))
    data = ModelCard(content).data
    assert data.base_model is None and data.get("base_model_relation") is None and data.datasets is None
    if path != "here/is/a/folder":
        assert path not in content.replace("\\\\", "\\")


def test_a_folder_that_looks_like_a_hub_id_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "org/lm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert render_card(config()).data.base_model is None


@pytest.mark.parametrize("dataset", ["python-stdlib", "books.jsonl", "data/books.txt", "given by the user"])
def test_text_that_is_not_on_the_hub_is_no_dataset_of_the_card(dataset: str):
    card = render_card(config(training=training(dataset=dataset), metrics=None))
    assert card.data.datasets is None and dataset in card.text


def test_tags_of_another_architecture_go():
    existing = render_card(JumpReLUSAEConfig(d_in=8, n_features=32))
    assert "jumprelu" in existing.data.tags
    assert "jumprelu" not in render_card(config(), existing=existing).data.tags


def test_results_of_other_people_stay_and_ours_go_with_the_evaluation():
    theirs = EvalResult("feature-extraction", "org/bench", "bench", "absorption", 0.1, task_name="Absorption")
    data = ModelCardData(model_name="x", eval_results=[theirs])
    existing = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    evaluated = reread(render_card(config(), existing=existing))
    assert {"absorption", "l0"} <= {result.metric_type for result in evaluated.data.eval_results}
    bare = render_card(config(metrics=None), existing=evaluated)
    assert bare.data.eval_results == [theirs]
