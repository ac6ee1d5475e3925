"""The comparison of a saved crosscoder: what is written beside it, and what is said."""

import json
import re
from pathlib import Path

import pytest
import torch

from hfsae import SAE, TopKSAEConfig
from hfsae.cli import main
from hfsae.dashboard.comparison import diff_saved
from hfsae.dashboard.page_contents import unpack
from hfsae.diffing import ModelDiff, diff
from hfsae.hub.card import card_of, difference
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import text, trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A crosscoder of two models that differ in one block, trained on a text that it names."""
    root = tmp_path_factory.mktemp("diff")
    documents = root / "text.jsonl"
    documents.write_text("".join(json.dumps({"text": one}) + "\n" for one in text()["text"]))
    torch.manual_seed(5)
    for change, name in enumerate(("base", "tuned")):
        lm = language_model()
        with torch.no_grad():
            weight = lm.transformer.h[1].mlp.c_proj.weight
            weight.add_(0.5 * change * torch.randn_like(weight))
        lm.save_pretrained(root / name)
        pythia_like().save_pretrained(root / name)
    options = {"model_name_or_path": str(root / "base"), "compare_model_name_or_path": str(root / "tuned")}
    inputs = {"model": None, "train_dataset": None, "processing_class": None}
    options |= {"dataset_name": str(documents), "architecture": "crosscoder", "eval_tokens": 200, "steps": 40}
    trainer(root / "run", inputs=inputs, learning_rate=3e-3, **options).train()
    return root / "run"


def test_it_writes_the_figures_the_picture_a_page_and_a_section_of_the_card(run, capsys):
    assert main(["diff", str(run), "--tokens", "1000", "--top", "3"]) == 0
    shown = capsys.readouterr().out
    found = ModelDiff.load(run)
    assert found.table() in shown and f"wrote {run / 'diff.html'}" in shown
    assert (run / "diff.png").read_bytes().startswith(b"\x89PNG")
    card = (run / "README.md").read_text()
    row = next(line for line in card.splitlines() if line.startswith("| shared |"))
    assert row.split("|")[3].strip() == str(found.counts()["shared"])
    assert "![Relative decoder norms" in card and str(card_of(run)) == card


def test_a_comparison_with_another_k_is_not_on_the_card(run):
    diff_saved(run, max_tokens=1000, n_features=1, disable_tqdm=True)
    sae = SAE.from_pretrained(run)
    assert difference(run, sae) is not None and ModelDiff.load(run).about["settings"]["k"] == sae.config.k
    assert difference(run, SAE.from_pretrained(run, k=sae.config.k + 1)) is None
    said = json.loads((run / "diff.json").read_text())
    del said["about"]["settings"]  # as an earlier version wrote it
    (run / "diff.json").write_text(json.dumps(said))
    assert difference(run, SAE.from_pretrained(run, k=sae.config.k + 1)) is not None


def test_the_figures_are_those_of_the_models_on_that_text(run, tmp_path):
    written = diff_saved(run, max_tokens=1000, output=tmp_path, disable_tqdm=True)
    sae = SAE.from_pretrained(run)
    again = diff(sae, sae.load_base_model(), written_text(sae, run), sae.load_tokenizer(), max_tokens=1000)
    assert written.found.classes == again.classes
    torch.testing.assert_close(written.found.scaling.error, again.scaling.error, equal_nan=True)
    assert written.found.n_tokens == again.n_tokens


def written_text(sae, run):
    from hfsae.saved.measuring_again import blocks_of, text_to_measure

    return blocks_of(sae, sae.load_base_model(), text_to_measure(sae.config, run, None, None, None).source, 16)


def test_the_page_shows_both_models_and_finds_features_by_their_class(run, tmp_path):
    written = diff_saved(run, max_tokens=1000, n_features=2, output=tmp_path, disable_tqdm=True)
    page = (tmp_path / "diff.html").read_text()
    index = json.loads(re.search(r'id="index"[^>]*>(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    features, kinds = index["features"]["index"], index["features"]["kinds"]
    assert [kind.split(", ")[-1] for kind in kinds] == [written.found.classes[one] for one in features] and features
    told = index["comparison"]
    assert list(told["models"]) == ["base", "tuned"] and None not in told["models"].values()
    found = written.found
    assert told["classes"] == [
        [kind, *(found.counts(how)[kind] for how in ("norms", "both", "scaling"))] for kind in found.kinds
    ]
    group = unpack(re.search(r'id="group-0"[^>]*>(.*?)</script>', page, re.S)[1].strip())  # type: ignore[index]
    first = group["features"][0]
    assert [source["name"] for source in first["sources"]] == ["base", "tuned"]
    assert max(source["norm"] for source in first["sources"]) == 1
    both = next(one for one in group["features"] if min(source["norm"] for source in one["sources"]) >= 0.2)
    assert all(source["promoted"] for source in both["sources"])
    assert first["top"]


def test_another_output_leaves_the_card_alone_and_weights_that_changed_have_no_section(run, tmp_path):
    before = (run / "README.md").read_text()
    diff_saved(run, max_tokens=500, output=tmp_path / "other", disable_tqdm=True)
    assert (run / "README.md").read_text() == before
    sae = SAE.from_pretrained(run)
    with torch.no_grad():
        sae.b_dec.add_(1)
    sae.save_pretrained(tmp_path / "changed")
    diff_saved(run, max_tokens=500, output=tmp_path / "changed", disable_tqdm=True)
    assert "What the sources share" not in card_of(tmp_path / "changed").text


def test_what_has_nothing_to_compare_is_refused(tmp_path, run, capsys):
    SAE.from_config(TopKSAEConfig(d_in=4, n_features=8, k=2)).save_pretrained(tmp_path / "one")
    assert main(["diff", str(tmp_path / "one")]) == 1
    assert "holds no crosscoder, but a TopKSAE" in capsys.readouterr().err
    sae = SAE.from_pretrained(run)
    sae.config.base_model = sae.config.source_models = None
    sae.save_pretrained(tmp_path / "own")
    assert main(["diff", str(tmp_path / "own")]) == 1
    assert "trained on activations. Hand them over" in capsys.readouterr().err
    assert main(["diff", str(run), "--absent", "0.9"]) == 1
    assert "absent=0.9 must not be above shared=0.8" in capsys.readouterr().err
    for top in ("0", "-1"):  # which compared first, and then failed, or showed all but the last of each class
        assert main(["diff", str(run), "--top", top, "--output", str(tmp_path / "none")]) == 1
        assert f"{top} features of each class: expected 1 or more" in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
