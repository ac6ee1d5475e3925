"""The figures of a card: ours are replaced, what others measured stays byte for byte, and two values are none."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hfsae.hub import render_card
from hfsae.hub.model_index import claims, merged, model_index_entry
from tests.hub.samples import config, metrics

# On the same data set and split as our record, as far as huggingface_hub tells them apart.
THEIRS = """\
- name: My own check   # by hand
  results:
    - task: {type: feature-extraction, name: "Other text"}
      dataset: {type: org/corpus, name: 'wiki-holdout', split: validation}
      metrics:
        - {type: mse, value: 9.00}
        - type: absorption
          value: 7.0e-1   # no metric of ours
"""


def figures(card: ModelCard | str) -> dict[str, dict[str, float]]:
    """Metric values by entry."""
    index = yaml.safe_load(str(card).split("---")[1])["model-index"]
    return {
        entry["name"]: {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
        for entry in index
    }


def with_theirs(card: ModelCard, place: str) -> str:
    """A card on which somebody has put an entry, before or after ours."""
    text = str(card)
    if place == "before":
        return text.replace("model-index:\n", f"model-index:\n{THEIRS}")
    front, rest = text.removeprefix("---\n").split("\n---\n", 1)
    assert front.split("\n")[-1].startswith("      "), "the index is last"
    return f"---\n{front}\n{THEIRS}---\n{rest}"


@pytest.mark.parametrize("place", ["before", "after"])
def test_other_peoples_entries_stay_byte_for_byte_however_often_a_card_is_refreshed(place):
    card = with_theirs(render_card(config(), repo_id="org/sae"), place)
    for l0 in (5.0, 6.0, 7.0):
        card = str(render_card(config(metrics=metrics(l0=l0)), repo_id="org/sae", existing=ModelCard(card)))
        assert THEIRS in card
        assert figures(card)["sae"]["l0"] == l0 and figures(card)["sae"]["mse"] == 12.5
        assert figures(card)["My own check"] == {"mse": 9.0, "absorption": 0.7}


def test_the_same_figures_leave_the_whole_card_as_it_is():
    card = with_theirs(render_card(config(), repo_id="org/sae", license="mit"), "before")
    card = card.replace("license: mit", "license: 'mit'   # ours").replace("tags:\n", "tags:\n- mine\n")
    again = str(render_card(config(), repo_id="org/sae", existing=ModelCard(card)))
    front = again.split("\n---\n")[0]
    assert THEIRS in again and "license: 'mit'   # ours" in front and "- mine\n" in front
    assert str(render_card(config(), repo_id="org/sae", existing=ModelCard(again))) == again


def test_what_verify_reads_is_what_was_measured_here_and_not_by_others():
    card = with_theirs(render_card(config(), repo_id="org/sae"), "before")
    assert claims(yaml.safe_load(card.split("---")[1])["model-index"], metrics())["mse"] == 12.5


def test_the_figures_of_others_survive_what_the_client_makes_of_a_card_and_are_not_taken_for_ours():
    """It puts both into one result, under the name of the last: the mark of each metric is what is left."""
    card = ModelCard(with_theirs(render_card(config(), repo_id="org/sae"), "after"))
    both = yaml.safe_load(card.content.split("---")[1])["model-index"]
    assert len(both) == 1 and len(both[0]["results"]) == 1
    with pytest.raises(ValueError, match="it claims two values for MSE, 12.5 and 9: mend its model-index"):
        claims(both, metrics())
    again = render_card(config(metrics=metrics(mse=3.5)), repo_id="org/sae", existing=ModelCard(card.content))
    values = [
        (metric["type"], metric["value"])
        for entry in yaml.safe_load(str(again).split("---")[1])["model-index"]
        for result in entry["results"]
        for metric in result["metrics"]
    ]
    assert ("mse", 3.5) in values and ("mse", 9.0) in values and ("absorption", 0.7) in values
    assert ("mse", 12.5) not in values


def test_figures_of_an_earlier_version_without_a_mark_are_ours_by_their_names():
    entry = model_index_entry("sae", metrics())
    for metric in entry["results"][0]["metrics"]:
        del metric["config"]
    new = model_index_entry("sae", metrics(l0=9.0))
    assert merged([entry], new) == [new] and claims([entry], metrics())["l0"] == 4.0


def test_figures_on_another_text_than_before_take_the_place_of_the_old_ones():
    old, new = (
        model_index_entry("sae", metrics()),
        model_index_entry("sae", metrics(protocol={"dataset": "org/other", "split": "test"})),
    )
    assert merged([old], new) == [new]


def test_local_texts_of_several_names_are_told_apart_where_the_client_looks():
    first, second = (
        model_index_entry("sae", metrics(protocol={"dataset": name, "split": "train", "data_files": files}))[
            "results"
        ][0]
        for name, files in (("texts", "a.jsonl"), ("texts", "b.jsonl"))
    )
    assert first["dataset"]["type"] == second["dataset"]["type"] == "other"
    assert first["dataset"]["config"] != second["dataset"]["config"]


def test_a_card_without_figures_of_ours_claims_none():
    assert claims(yaml.safe_load(THEIRS), metrics()) == {} == claims(None, None)
    assert merged(yaml.safe_load(THEIRS), None) == yaml.safe_load(THEIRS)
