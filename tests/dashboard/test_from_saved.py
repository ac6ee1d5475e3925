"""From a saved folder to its dashboard, with what lies in the folder already."""

import json

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, TopKSAEConfig
from hfsae.analysis import FeatureCollection
from hfsae.cli import main
from hfsae.dashboard import ensure_dashboard, gather, make_dashboard, read_labels, write_labels, write_space
from hfsae.identity import Identity, settings_of, weights_sha256
from tests.analysis.tiny import setting
from tests.dashboard.tiny import index_of, saved_sae

FIELDS = {"d_in": 16, "k": 4, "hook_point": "transformer.h.1.output", "context_length": 12}


@pytest.fixture
def place(tmp_path):
    return saved_sae(tmp_path)


def test_what_was_collected_is_kept_and_used_again(place):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    page = make_dashboard(place / "sae", texts=["w1 w2 w3"], **options)
    assert page == place / "sae" / "dashboard.html"
    (place / "text.jsonl").unlink()
    again = index_of(make_dashboard(place / "sae", place / "again.html"))
    assert again["features"] == index_of(page)["features"] and again["about"]["dataset"] == "text.jsonl, train"
    assert len(index_of(page)["prompts"]) == 1 and again["prompts"] == []


def test_the_command_collects_in_bfloat16_and_the_page_says_so(place):
    options = ["--dataset_name", str(place / "text.jsonl"), "--dataset_split", "train"]
    for flags, precision in (([], "float32"), (["--bf16", "--write"], "bfloat16")):
        assert main(["dashboard", str(place / "sae"), *options, *flags]) == 0
        assert index_of(place / "sae" / "dashboard.html")["about"]["model_precision"] == precision
        assert FeatureCollection.load(place / "sae").about.model_precision == precision


def test_how_many_tokens_to_read_is_not_ignored_where_features_were_kept(place, caplog):
    sae = SAE.from_pretrained(place / "sae")
    sae.config.training = {"evaluation": {"dataset": str(place / "text.jsonl"), "split": "train"}}
    sae.save_pretrained(place / "sae")
    few = gather(place / "sae", max_tokens=40, disable_tqdm=True).collection.about.n_tokens
    gather(place / "sae")
    assert not caplog.messages
    assert gather(place / "sae", max_tokens=10_000).collection.about.n_tokens == few
    assert f"holds features of {few:,} tokens, which are shown" in caplog.text and "--write" in caplog.text
    assert main(["dashboard", str(place / "sae"), "--max_tokens", "10000", "--write"]) == 0
    assert FeatureCollection.load(place / "sae").about.n_tokens > few


def test_the_overview_has_the_recorded_figures_and_links_to_card_and_report(place):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    sae = SAE.from_pretrained(place / "sae")
    sae.config.metrics = {
        "l0": 4.0,
        "explained_variance": 0.5,
        "ce_increase": 0.25,
        "dead_fraction": 0.9,
        "n_tokens": 100,
        "protocol": {"weights_sha256": weights_sha256(sae), "settings": settings_of(sae.config)},
    }
    sae.save_pretrained(place / "sae")
    (place / "sae" / "README.md").write_text("card")
    index = index_of(make_dashboard(place / "sae", place / "a page.html", **options))
    found = {figure["title"]: (figure["value"], figure["outside"]) for figure in index["measured"]}
    assert found["L0"] == (4, True) and found["explained variance"] == (0.5, True)
    assert found["CE increase"] == (0.25, False)
    assert found["dead features"] == (0.9, True)
    assert index["links"] == [["Model card", "sae/README.md"]]
    (place / "sae" / "report.html").write_text("report")
    page = make_dashboard(place / "sae", write=True, **options)
    assert index_of(page)["links"] == [["Model card", "README.md"], ["Report", "report.html"]]
    space = write_space(output=place / "space", **gather(place / "sae")._asdict())
    assert index_of(space / "index.html")["links"] == []

    SAE.from_pretrained(place / "sae", k=3).save_pretrained(place / "sae")
    assert index_of(make_dashboard(place / "sae", place / "with k.html", **options))["measured"] == []
    sae.W_dec.data.mul_(2)
    sae.save_pretrained(place / "sae")
    assert index_of(make_dashboard(place / "sae", place / "again.html", **options))["measured"] == []


def test_pages_of_features_lead_to_their_partners_in_other_saes(place, hub):
    """The other SAE is this one in another order, and narrower: partners are known, and some have none."""
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    sae = SAE.from_pretrained(place / "sae")
    order = torch.randperm(sae.config.n_features, generator=torch.Generator().manual_seed(0))[:30]
    other = SAE.from_config(TopKSAEConfig(**{**FIELDS, "n_features": 30}, base_model=sae.config.base_model))
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
        other.encoder.weight.copy_(sae.encoder.weight[order])
    other.save_pretrained(place / "other")
    (without,) = index_of(make_dashboard(place / "sae", match=[str(place / "other")], **options))["matches"]
    assert without["page"] is None
    make_dashboard(place / "other", **options)
    (found,) = index_of(make_dashboard(place / "sae", match=[str(place / "other")]))["matches"]
    assert found["page"] == "../other/dashboard.html" and found["name"].startswith("other")
    pairs = {int(own): tuple(theirs) for own, theirs in found["pairs"].items()}
    assert pairs == {own: (row, pytest.approx(1, abs=1e-3)) for row, own in enumerate(order.tolist())}
    HfApi().create_repo("tester/zoo")
    HfApi().upload_folder(repo_id="tester/zoo", folder_path=place / "other", path_in_repo="a/b")
    (away,) = index_of(make_dashboard(place / "sae", match=["tester/zoo/a/b@main"]))["matches"]
    assert away["pairs"] == found["pairs"]
    space = write_space(output=place / "space", **gather(place / "sae", match=[str(place / "other")])._asdict())
    assert [one["page"] for one in index_of(space / "index.html")["matches"]] == [None]

    SAE.from_config(TopKSAEConfig(d_in=8, n_features=30, k=4)).save_pretrained(place / "narrow")
    with pytest.raises(ValueError, match="can only be matched at one place"):
        make_dashboard(place / "sae", match=[str(place / "narrow")])


def test_features_of_other_weights_are_collected_anew(place, caplog):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    gather(place / "sae", **options)
    sae = SAE.from_pretrained(place / "sae")
    sae.W_dec.data.mul_(2)
    sae.save_pretrained(place / "sae")
    with caplog.at_level("INFO", "hfsae"), pytest.raises(ValueError, match="no text was recorded"):
        gather(place / "sae")
    assert "of other weights" in caplog.text
    assert gather(place / "sae", **options).collection.about.weights_sha256 == weights_sha256(sae)


@pytest.mark.parametrize("fields", [{"k": 2}, {"hook_point": "transformer.h.0.output"}])
def test_what_was_kept_with_other_settings_is_not_taken(place, caplog, fields):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    write_labels(place / "sae" / "labels.json", {3: "x"}, *Identity.of(SAE.from_pretrained(place / "sae")))
    page = make_dashboard(place / "sae", **options)
    assert ensure_dashboard(place / "sae") == page and FeatureCollection.load(place / "sae").about.settings["k"] == 4
    before = FeatureCollection.load(place / "sae").statistics.tokens_firing
    config = json.loads((place / "sae" / "config.json").read_text())
    config["metrics"] = {"protocol": {"dataset": str(place / "text.jsonl"), "split": "train"}}
    (place / "sae" / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ValueError, match="labels of other settings than these"):
        ensure_dashboard(place / "sae")  # the page is of other settings too
    (place / "sae" / "labels.json").unlink()
    with caplog.at_level("INFO", "hfsae"):
        about = index_of(ensure_dashboard(place / "sae"))["about"]
    assert "of other settings" in caplog.text and about["settings"].items() >= fields.items()
    assert not torch.equal(FeatureCollection.load(place / "sae").statistics.tokens_firing, before)


def test_what_an_earlier_version_kept_counts_for_any_settings(place):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    page = make_dashboard(place / "sae", **options)
    said = json.loads((place / "sae" / "features.json").read_text())
    del said["settings"]
    (place / "sae" / "features.json").write_text(json.dumps(said))
    make_dashboard(place / "sae")
    assert index_of(page)["about"]["settings"] is None
    config = json.loads((place / "sae" / "config.json").read_text()) | {"k": 2}
    (place / "sae" / "config.json").write_text(json.dumps(config))
    assert gather(place / "sae").collection.about.settings is None and ensure_dashboard(place / "sae") == page


def test_a_dashboard_of_these_weights_is_kept_and_one_of_others_written_anew(place):
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    page = make_dashboard(place / "sae", texts=["w1 w2 w3"], **options)
    assert ensure_dashboard(place / "sae") == page and len(index_of(page)["prompts"]) == 1
    page.write_text("of other weights")
    assert index_of(ensure_dashboard(place / "sae"))["prompts"] == []


def test_labels_of_the_page_become_those_beside_the_weights(place):
    digest = weights_sha256(setting().sae)
    write_labels(place / "downloaded.json", {3: "x"}, digest)
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    page = make_dashboard(place / "sae", labels=place / "downloaded.json", **options)
    assert read_labels(place / "sae" / "labels.json", digest) == {3: "x"} and index_of(page)["labels"] == {"3": "x"}
    assert index_of(make_dashboard(place / "sae"))["labels"] == {"3": "x"}


def test_labels_of_other_weights_are_refused_before_anything_is_read(place):
    write_labels(place / "downloaded.json", {3: "x"}, "0" * 64)
    with pytest.raises(ValueError, match="other weights"):
        make_dashboard(place / "sae", labels=place / "downloaded.json", dataset="there is no such text")
    assert {path.name for path in (place / "sae").iterdir()} == {"SHA256SUMS", "config.json", "model.safetensors"}


def test_without_any_text_there_is_no_collection(place):
    with pytest.raises(ValueError, match="--dataset"):
        make_dashboard(place / "sae")
    with pytest.raises(FileNotFoundError):
        FeatureCollection.load(place / "sae")


# -- looking at another text replaces nothing -------------------------------------------------------------------------
def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def shown(place):
    """A saved SAE with features, page and labels of one text, and another text."""
    options = {"dataset": str(place / "text.jsonl"), "split": "train", "disable_tqdm": True}
    write_labels(place / "first.json", {3: "x"}, weights_sha256(setting().sae))
    write_labels(place / "second.json", {3: "y"}, weights_sha256(setting().sae))
    make_dashboard(place / "sae", labels=place / "first.json", **options)
    lines = (place / "text.jsonl").read_text().splitlines()
    (place / "other.jsonl").write_text("\n".join(lines[: len(lines) // 2]))
    return place


def test_a_page_of_another_text_leaves_what_lies_beside_the_weights_alone(shown, caplog):
    before = contents(shown / "sae")
    options = {"dataset": str(shown / "other.jsonl"), "split": "train", "disable_tqdm": True}
    with pytest.raises(ValueError, match="name a file for one of another text or model"):
        make_dashboard(shown / "sae", **options)
    page = make_dashboard(shown / "sae", shown / "other.html", labels=shown / "second.json", **options)
    assert contents(shown / "sae") == before
    assert index_of(page)["about"]["dataset"] == "other.jsonl, train" and index_of(page)["labels"] == {"3": "y"}
    assert "labels.json stays as it is" in caplog.text


def test_it_replaces_them_where_that_is_said(shown):
    options = {"dataset": str(shown / "other.jsonl"), "split": "train", "disable_tqdm": True, "write": True}
    page = make_dashboard(shown / "sae", labels=shown / "second.json", **options)
    again = index_of(make_dashboard(shown / "sae", shown / "again.html"))
    assert index_of(page)["about"]["dataset"] == again["about"]["dataset"] == "other.jsonl, train"
    assert again["labels"] == {"3": "y"}
