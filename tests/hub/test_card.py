"""The card: what it says, and what of people's own work it keeps."""

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import GPT2Config

from hfsae import SAE, CrosscoderSAEConfig, TopKSAEConfig, capture
from hfsae.architectures import architectures
from hfsae.evaluation import weights_sha256
from hfsae.hub import render_card, write_card
from hfsae.hub.card import BEGIN, END
from hfsae.hub.sae_entries import sae_entry
from hfsae.identity import settings_of
from tests.architectures.variants import sources
from tests.hub.samples import LOG, config, dashboard_of, metrics, reread, snippet, training


def table(text: str, first_cell: str) -> list[str]:
    """The cells of the row of a table that begins so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first_cell} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


# -- what it says -----------------------------------------------------------------------------------------------------
def test_its_first_sentence_names_architecture_size_place_and_model():
    text = render_card(config(), repo_id="org/sae").text
    for fact in (
        "`TopKSAE`",
        "32 features",
        "4 × the 8",
        "`transformer.h.8.output`",
        "`resid_post.8`",
        "org/lm",
        "607a30d",
    ):
        assert fact in text.split("## Measured")[0]


def test_an_adapter_and_what_the_model_was_loaded_with_are_named_beside_it():
    loaded = {"quantization_config": {"quant_method": "quanto", "weights": "int8"}, "gguf_file": "a.gguf"}
    adapted = config(base_model_adapter="org/lora", base_model_adapter_revision="abc123", base_model_kwargs=loaded)
    text = render_card(adapted).text.split("## Measured")[0]
    link = "the PEFT adapter [org/lora](https://huggingface.co/org/lora) at commit `abc123`"
    assert f"{link} (loaded with `quantization_config=quanto`, `gguf_file=a.gguf`)" in text
    assert "with a PEFT adapter that is not on the Hub" in render_card(config(base_model_adapter="./lora")).text
    assert "PEFT" not in render_card(config()).text


def test_figures_stand_beside_their_baselines_and_ranges():
    text = render_card(config()).text
    assert table(text, "**explained variance**")[1:5] == ["**0.9625**", "0.25", "0.5", "> 0.95"]
    assert table(text, "**loss recovered**")[1:4] == ["**0.9688**", "0.75", "0.875"]
    assert "PCA, 4 components" in text


def test_a_figure_out_of_range_and_one_that_a_baseline_reaches_are_remarked_on():
    baselines = {"pca": {"components": 4, "explained_variance": 0.97}}
    text = render_card(config(metrics=metrics(l0=312.0, baselines=baselines))).text
    assert "⚠ L0: 312 is above 200" in text
    near = render_card(config(metrics=metrics(explained_variance=0.949999))).text
    assert "explained variance: 0.949999 is outside the healthy range, &gt; 0.95" in near.replace(
        "> 0.95", "&gt; 0.95"
    )
    assert "⚠ explained variance: 0.9625 is no better than the 0.97 of a baseline" in text


def test_the_l0_that_training_ended_at_is_told_in_four_digits_like_other_figures():
    card = str(render_card(config(training=training(target_l0=32.0, final_l0=75.78224769920415))))
    assert "| L0 at the end, smoothed | 75.78 |" in card and "75.782" not in card


def test_a_metric_without_a_value_says_why():
    undefined = metrics(loss_recovered=None, notes={"loss_recovered": "CE zero − CE clean is 0.01"})
    card = render_card(config(metrics=undefined))
    assert "loss recovered: CE zero − CE clean is 0.01" in card.text
    assert "loss_recovered" not in {result.metric_type for result in reread(card).data.eval_results}


def test_an_sae_that_was_not_evaluated_has_no_figures():
    card = render_card(config(metrics=None), repo_id="org/sae")
    assert "has not been evaluated" in card.text and "healthy" not in card.text
    assert "model-index" not in card.data.to_dict() and "model_name" not in card.data.to_dict()


def test_a_bare_config_has_a_card():
    text = render_card(TopKSAEConfig(d_in=8, n_features=32, k=4)).text
    assert "not on the Hub" in text and "How this SAE was trained is not recorded" in text


@pytest.mark.parametrize("name", sorted(architectures()))
def test_every_architecture_has_a_card_that_says_what_it_is(name: str):
    sae = SAE.from_config(architectures()[name].config_class(d_in=8, n_features=64, **sources(name, 8)))
    card = render_card(sae)
    assert name in card.data.tags and type(sae).__name__ in card.text
    assert re.search(r"\d{4}", card.text.split("## Measured")[0].split("\n\n")[2]), "the paper's year"


def test_a_crosscoders_card_says_the_scale_of_every_source():
    sae = SAE.from_config(CrosscoderSAEConfig(source_names=["a", "b"], source_widths=[4, 4], n_features=40, k=4))
    with torch.no_grad():
        sae.input_scale.copy_(torch.tensor([0.375, 2.5]))
    assert "`input_scale` = 0.375, 2.5" in render_card(sae).text


def test_the_code_on_a_crosscoders_card_reads_all_its_places(tmp_path, monkeypatch):
    places = [f"transformer.h.{layer}.output" for layer in (1, 2)]
    sources = {"source_names": ["early", "late"], "source_widths": [128, 128], "hook_point": "+".join(places)}
    base_model = str(Path(__file__).parents[2] / "examples" / "tiny_lm")
    sae = SAE.from_config(CrosscoderSAEConfig(**sources, n_features=64, k=4, base_model=base_model))
    sae.save_pretrained(tmp_path)
    write_card(tmp_path, sae)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippet((tmp_path / "README.md").read_text()), names)
    with torch.no_grad(), capture(names["model"], places) as read:
        names["model"](**names["inputs"])
    by_hand = sae.encode(torch.cat([read[place] for place in places], -1))
    torch.testing.assert_close(names["features"].to_dense(), by_hand)
    assert by_hand.any() and "A crosscoder (`CrosscoderSAE`)" in (tmp_path / "README.md").read_text()


def test_figures_of_other_weights_are_called_stale_and_leave_the_metadata():
    sae = SAE.from_config(config())
    sae.config.metrics["protocol"]["weights_sha256"] = weights_sha256(sae)
    fresh = render_card(sae)
    assert "stale" not in fresh.text and fresh.data.eval_results
    with torch.no_grad():
        sae.W_dec[0] *= -1
    stale = render_card(sae)
    assert "These figures are stale" in stale.text and not stale.data.eval_results
    assert "These figures are stale" in render_card(sae.config, weights_digest=weights_sha256(sae)).text


def test_figures_of_other_settings_are_stale_too():
    sae = SAE.from_config(config())
    sae.config.metrics["protocol"] |= {"weights_sha256": weights_sha256(sae), "settings": settings_of(sae.config)}
    fresh = render_card(sae)
    assert "stale" not in fresh.text and "settings" not in fresh.text and fresh.data.eval_results
    sae.config.k, sae.config.prepend_bos = 2, True
    for shown in (sae, sae.config):
        stale = render_card(shown)
        assert "measured before the config was changed: `prepend_bos`, `k`. Evaluate" in stale.text
        assert not stale.data.eval_results
    assert sae_entry(sae.config, "", weights_digest=weights_sha256(sae)).stale


def test_conventions_are_those_of_the_weights():
    sae = SAE.from_config(config(subtract_b_dec=False))
    with torch.no_grad():
        sae.input_scale.fill_(0.375)
        sae.W_dec[0] *= 3
    text = render_card(sae).text
    assert "`input_scale` = 0.375" in text and "`b_dec` is not subtracted" in text
    assert "norms from 1 to 3" in text


def test_a_transcoder_names_both_places_and_both_scales():
    sae = SAE.from_config(config(target_hook_point="transformer.h.9.output", subtract_b_dec=False))
    text = render_card(sae).text
    assert "A transcoder" in text and "predicts those at `transformer.h.9.output`" in text
    assert "divided by `output_scale` = 1" in text
    assert ["transcoder" in render_card(of).data.tags for of in (sae, config())] == [True, False]


def test_where_the_run_was_kept_is_not_published():
    text = render_card(config()).text
    assert "somebody" not in text and "`learning_rate`" in text


def test_an_impossible_repository_is_refused():
    with pytest.raises(ValueError, match="repo"):
        render_card(config(), repo_id="not a/repo/id")


ODD = (5, -1.5, True, None, "x", [], [1, "a"], {}, {"a": 1}, [[]], float("inf"))


@pytest.mark.parametrize("field", ["training", "metrics"])
def test_values_of_odd_kinds_cost_their_row_and_not_the_card(field, tmp_path):
    """Each value of a record in turn, and each inside of it, is of a kind that it cannot be."""
    record = getattr(config(), field)
    changes = [(name, None) for name in record]
    changes += [(name, inner) for name, value in record.items() if isinstance(value, dict) for inner in value]
    for name, inner in changes:
        for odd in ODD:
            changed = copy.deepcopy(record)
            if inner is None:
                changed[name] = odd
            else:
                changed[name][inner] = odd
            of = config(**{field: changed})
            assert "## Measured" in render_card(of).text, (name, inner, odd)
            sae_entry(of, "x")


@pytest.mark.parametrize("density", [3, "x", {"log10_edges": 1}, {"log10_edges": [1, "a"], "counts": [2], "never": 1}])
def test_densities_of_odd_kinds_are_no_picture(tmp_path, density):
    SAE.from_config(config(metrics=metrics(density=density))).save_pretrained(tmp_path)
    assert "feature_density.png" not in write_card(tmp_path).read_text()


@pytest.mark.parametrize("tags", ["[[a, b], mine]", "mine", "[{a: 1}, mine, 3]"])
def test_tags_of_odd_kinds_are_kept(tags):
    existing = ModelCard(f"---\ntags: {tags}\n---\nMine.\n")
    written = yaml.safe_load(str(render_card(config(), existing=existing)).split("---")[1])["tags"]
    theirs = yaml.safe_load(tags)
    assert all(tag in written for tag in (theirs if isinstance(theirs, list) else [theirs])) and "hfsae" in written


# -- what people wrote ------------------------------------------------------------------------------------------------
def test_rendering_again_changes_nothing():
    first = render_card(config(), repo_id="org/sae", license="mit")
    assert str(render_card(config(), repo_id="org/sae", existing=reread(first))) == str(first)
    assert str(render_card(config(), repo_id="org/sae")) == str(render_card(config(), repo_id="org/sae"))


def test_human_text_metadata_and_licence_survive_while_figures_move_on():
    card = render_card(config(), repo_id="org/sae", license="mit")
    card.data["thumbnail"] = "https://example.org/a.png"
    card.data.tags.append("my-tag")
    edited = (
        str(card).replace(BEGIN, f"# Read this first\n\n{BEGIN}").replace(END, f"{END}\n\n## My findings\n\nCats.\n")
    )
    again = render_card(config(metrics=metrics(l0=77.0)), repo_id="org/sae", existing=ModelCard(edited))
    assert again.text.index("# Read this first") < again.text.index(BEGIN)
    assert again.text.endswith("## My findings\n\nCats.\n\n")
    assert again.data.license == "mit" and again.data["thumbnail"] == "https://example.org/a.png"
    assert "my-tag" in again.data.tags and "**77**" in again.text and "| **4** |" not in again.text
    assert str(render_card(config(metrics=metrics(l0=77.0)), repo_id="org/sae", existing=reread(again))) == str(again)


def test_edits_inside_the_block_are_overwritten():
    edited = str(render_card(config())).replace("0.9625", "0.9999")
    assert "0.9999" not in render_card(config(), existing=ModelCard(edited)).text


def test_a_card_written_by_hand_gets_the_block_on_top():
    existing = ModelCard("---\nlicense: mit\nextra: {a: 1}\n---\n# Mine\r\n\r\nText.\r\n")
    card = render_card(config(), existing=existing)
    assert card.text.index(END) < card.text.index("# Mine\n\nText.\n")
    assert card.data.license == "mit" and card.data["extra"] == {"a": 1}
    assert str(render_card(config(), existing=reread(card))) == str(card)


def test_a_block_that_lost_its_end_is_left_as_text():
    broken = str(render_card(config())).replace(END, "")
    card = render_card(config(), existing=ModelCard(broken))
    assert card.text.count(END) == 1 and card.text.index(BEGIN) < card.text.index(END)


# -- beside the weights -----------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved SAE without what pictures are drawn from."""
    SAE.from_config(config(metrics=metrics(density=None))).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def pictured(tmp_path: Path) -> Path:
    """A saved SAE with its log and its feature densities."""
    SAE.from_config(config()).save_pretrained(tmp_path)
    (tmp_path / "training_log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    return tmp_path


def test_write_card_writes_the_card_and_its_pictures_beside_the_weights(pictured: Path):
    path = write_card(pictured)
    text = path.read_text(encoding="utf-8")
    assert path == pictured / "README.md" and "`input_scale` = 1" in text
    pictures = re.findall(r"!\[.+\]\((.+)\)", text)
    assert pictures == ["training_curve.png", "feature_density.png"]
    assert all((pictured / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert not list(pictured.glob(".*")), "nothing half-written is left"


def test_a_histogram_of_an_earlier_evaluation_is_not_shown(pictured: Path):
    write_card(pictured)
    sae = SAE.from_config(config(metrics=metrics(density=None)))
    assert "feature_density.png" not in write_card(pictured, sae).read_text(encoding="utf-8")


def test_a_dashboard_is_linked_while_it_shows_these_weights(folder: Path):
    sae = SAE.from_pretrained(folder)
    (folder / "dashboard.html").write_text(dashboard_of(sae))
    assert "](dashboard.html)" in write_card(folder).read_text(encoding="utf-8")
    with torch.no_grad():
        sae.b_dec += 1
    assert "](dashboard.html)" not in write_card(folder, sae).read_text(encoding="utf-8")


def test_a_dashboard_is_linked_while_it_shows_these_settings(folder: Path):
    page = folder / "dashboard.html"
    page.write_text(dashboard_of(SAE.from_pretrained(folder)))
    for fields in ({"k": 2}, {"hook_point": "resid_post.0"}, {"exclude_positions": []}):
        assert "](dashboard.html)" not in write_card(folder, SAE.from_pretrained(folder, **fields)).read_text("utf-8")
    # A page of an earlier version knows no settings, and one of somebody else's nothing.
    page.write_text(dashboard_of(SAE.from_pretrained(folder), "weights_sha256"))
    assert "](dashboard.html)" in write_card(folder, SAE.from_pretrained(folder, k=2)).read_text("utf-8")
    for content in ("", "<h1>mine</h1>", page.read_text()[:60], page.read_text().replace('"about"', '"more"')):
        page.write_text(content)
        assert "](dashboard.html)" not in write_card(folder).read_text("utf-8")


def test_writing_twice_gives_the_same_bytes(pictured: Path):
    def written() -> dict[str, bytes]:
        write_card(pictured)
        return {path.name: path.read_bytes() for path in pictured.iterdir()}

    assert written() == written()


def test_a_saved_sae_has_the_card_that_it_had_in_memory(folder: Path):
    sae = SAE.from_config(config(metrics=metrics(density=None)))
    sae.save_pretrained(folder)
    assert write_card(folder).read_text(encoding="utf-8") == str(render_card(sae))


def test_write_card_keeps_what_people_wrote_in_the_folder(folder: Path):
    write_card(folder, license="mit")
    path = folder / "README.md"
    path.write_text(path.read_text() + "\n## Notes\n\nÄ note.\n", encoding="utf-8")
    write_card(folder)
    assert "## Notes\n\nÄ note." in path.read_text(encoding="utf-8") and "license: mit" in path.read_text()


def test_a_config_without_weights_is_enough(tmp_path: Path):
    config(metrics=None).save_pretrained(tmp_path)
    text = write_card(tmp_path).read_text()
    assert "has not been evaluated" in text and ".png" not in text


def test_overwritten_weights_make_the_figures_stale(folder: Path):
    sae = SAE.from_pretrained(folder)
    sae.config.metrics["protocol"]["weights_sha256"] = weights_sha256(sae)
    sae.save_pretrained(folder)
    assert "stale" not in write_card(folder).read_text()
    SAE.from_config(sae.config).save_pretrained(folder)
    assert "These figures are stale" in write_card(folder).read_text()


def test_a_folder_without_an_sae_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        write_card(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gpt2"):
        write_card(tmp_path)


def test_metadata_that_cannot_be_read_is_not_overwritten(folder: Path):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\nprecious\n")
    with pytest.raises(ValueError, match="README.md has metadata that cannot be read"):
        write_card(folder)
    assert "precious" in (folder / "README.md").read_text()


# -- the snippet ------------------------------------------------------------------------------------------------------
def test_the_snippet_of_a_saved_sae_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_lm = Path(__file__).parents[2] / "examples/tiny_lm"
    reads = {"hook_point": "transformer.h.1.output", "base_model": str(tiny_lm), "prepend_bos": True}
    SAE.from_config(TopKSAEConfig(d_in=128, n_features=256, k=4, **reads)).save_pretrained(tmp_path)
    code = snippet(write_card(tmp_path).read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["features"].shape[0] == 1 and names["features"].values.shape[-1] <= 4


def test_the_snippet_for_a_repository_names_it_and_its_subfolder():
    code = snippet(render_card(config(), repo_id="org/sae", subfolder="layer_8").text)
    assert 'SAE.from_pretrained("org/sae", subfolder="layer_8")' in code and ast.parse(code)


@pytest.mark.parametrize("changes", [{"hook_point": None}, {"base_model": None}, {"prepend_bos": False}])
def test_every_form_of_the_snippet_is_python(changes: dict[str, Any]):
    assert ast.parse(snippet(render_card(config(**changes)).text))
