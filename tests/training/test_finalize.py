import json
import logging
import shlex

import pytest
import torch
from datasets import Dataset

from hfsae import SAE, TopKSAEConfig
from hfsae.cli import main
from hfsae.data.encoding import as_ranges, special_token_ids
from hfsae.evaluation.calibration import read_rows
from hfsae.hub.sections import display_name
from hfsae.identity import weights_sha256
from hfsae.inputs import streams
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import BATCH, At, sparse_rows, text, trainer


def test_what_was_measured_stands_in_the_output_the_config_and_the_folder(tmp_path):
    output = trainer(tmp_path, steps=3, eval_tokens=150, exclude_positions=[0, 1]).train()
    metrics = output.metrics[""]
    assert {"l0", "explained_variance", "loss_recovered", "baselines", "protocol"} <= metrics.keys()
    saved = SAE.from_pretrained(tmp_path)
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads(json.dumps(metrics)) == stored == saved.config.metrics
    assert metrics["protocol"]["weights_sha256"] == weights_sha256(saved)
    assert 0 < metrics["l0"] <= 4 and metrics["n_tokens"] > 50


def test_the_config_says_how_the_sae_was_trained(tmp_path):
    output = trainer(tmp_path, steps=3, gradient_accumulation_steps=2, seed=5, dataset_name="mine").train()
    training = SAE.from_pretrained(tmp_path).config.training
    assert training == output.sae.config.training
    assert (training["steps"], training["n_tokens"], training["batch_tokens"]) == (3, 6 * BATCH, 2 * BATCH)
    assert training["seed"] == training["arguments"]["seed"] == 5 and training["dataset"] == "mine"
    assert training["seconds"] >= 0 and {"hfsae", "torch", "python"} <= training["versions"].keys()


@pytest.mark.parametrize(("options", "read_in"), [({}, "bfloat16"), ({"model_dtype": "float32"}, "float32")])
def test_config_and_card_say_in_what_precision_text_was_read_and_in_what_it_was_measured(
    tmp_path, monkeypatch, options, read_in
):
    monkeypatch.setattr(streams, "has_bfloat16_units", lambda: True)
    trainer(tmp_path, eval_tokens=100, **options).train()
    config = SAE.from_pretrained(tmp_path).config
    assert config.training["model_precision"] == read_in
    assert config.metrics["protocol"]["dtype"] == "float32"
    card = (tmp_path / "README.md").read_text()
    assert f"language model's precision | {read_in} |" in card and "precision | float32 |" in card


@pytest.mark.parametrize("eval_tokens", [0, 100])
def test_thresholds_are_calibrated_on_what_training_reads_unless_it_serves_an_evaluation_too(
    tmp_path, monkeypatch, eval_tokens
):
    monkeypatch.setattr(streams, "has_bfloat16_units", lambda: True)
    model, seen = language_model(), []
    before_last = trainer(tmp_path, inputs={"model": model}, eval_tokens=eval_tokens, **CALIBRATED)
    monkeypatch.setattr(
        streams,
        "read_rows",
        lambda model, *args, **kwargs: (
            seen.append(model.transformer.wte.weight.dtype) or read_rows(model, *args, **kwargs)
        ),
    )
    before_last.train()
    assert seen == [torch.float32 if eval_tokens else torch.bfloat16]


def test_the_config_says_which_tokens_were_taken_for_special(tmp_path):
    tokenizer = pythia_like()
    trainer(tmp_path).train()
    ranges = SAE.from_pretrained(tmp_path).config.training["special_tokens"]
    assert ranges == as_ranges(special_token_ids(tokenizer))
    recorded = {token_id for first, last in ranges for token_id in range(first, last + 1)}
    assert recorded == {*tokenizer.all_special_ids} and recorded


def test_each_sae_of_many_has_its_own_log_metrics_and_card(tmp_path):
    saes = {name: TopKSAEConfig(d_in=16, n_features=48, k=k) for name, k in (("two", 2), ("four", 4))}
    output = trainer(tmp_path, steps=2, logging_steps=1, eval_tokens=100, inputs={"saes": saes}).train()
    for name, k in (("two", 2), ("four", 4)):
        folder = tmp_path / name
        log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == [1, 2] and all(entry["l0"] <= k for entry in log)
        assert not any("/" in key for key in log[0])
        assert json.loads((folder / "metrics.json").read_text())["l0"] == output.metrics[name]["l0"] <= k
        assert "# " in (folder / "README.md").read_text()


def test_without_evaluation_an_sae_has_no_metrics_and_a_card_that_says_so(tmp_path):
    assert trainer(tmp_path, steps=2).train().metrics == {}
    assert SAE.from_pretrained(tmp_path).config.metrics is None and not (tmp_path / "metrics.json").exists()
    assert "has not been evaluated" in (tmp_path / "README.md").read_text()


CALIBRATED = {"architecture": "batch_topk", "learning_rate": 0.005, "train_batch_tokens": 64, "steps": 40}


def test_batch_topk_has_k_active_features_on_activations_it_has_not_seen(tmp_path):
    inputs = {"activations": sparse_rows(100_000)}
    sae = trainer(tmp_path, inputs=inputs, calibration_tokens=2000, **CALIBRATED).train().sae
    active = sae.encode(sparse_rows(4000, seed=1)) > 0
    assert active.sum(1).float().mean().item() == pytest.approx(4, rel=0.05)


def test_batch_topk_has_k_active_features_on_text_it_has_not_seen(tmp_path):
    inputs = {"model": language_model(), "train_dataset": text(4000)}
    output = trainer(tmp_path, inputs=inputs, calibration_tokens=2000, eval_tokens=2000, **CALIBRATED).train()
    assert output.metrics[""]["n_tokens"] > 1500
    assert output.metrics[""]["l0"] == pytest.approx(4, rel=0.05)


def tokens_read(tmp_path, **options) -> int:
    """By the language model, in a run that is told to read 2,000 tokens for calibration."""
    model, read = language_model(), []
    model.get_input_embeddings().register_forward_hook(lambda module, ids, out: read.append(ids[0].numel()))
    inputs = {"model": model, "train_dataset": text(4000)}
    trainer(tmp_path, inputs=inputs, calibration_tokens=2000, **(CALIBRATED | options)).train()
    return sum(read)


def test_text_for_calibration_is_read_where_thresholds_or_an_evaluation_need_it_and_nowhere_else(tmp_path):
    alone = tokens_read(tmp_path / "topk", architecture="topk", eval_tokens=0)
    assert 64 * 40 <= alone < 64 * 40 + 2000
    assert tokens_read(tmp_path / "batch_topk", eval_tokens=0) >= alone + 2000
    assert tokens_read(tmp_path / "measured", architecture="topk", eval_tokens=100) >= alone + 2000


def test_nothing_half_written_is_left_in_the_folder(tmp_path):
    trainer(tmp_path, steps=2, eval_tokens=100).train()
    assert not [path for path in tmp_path.rglob(".*")]
    assert torch.isfinite(SAE.from_pretrained(tmp_path).W_dec).all()


# -- what comes after the training may fail -------------------------------------------------------------------------
def out_of_memory(*_):
    raise torch.OutOfMemoryError("no room for logits")


@pytest.fixture
def named(tmp_path):
    """A language model and its text on the disk, by name."""
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    return {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl")}


def test_an_evaluation_that_fails_costs_no_sae_and_the_command_in_the_warning_makes_up_for_it(tmp_path, named, caplog):
    model, folder = language_model(), tmp_path / "run"
    inputs = {"model": model, "train_dataset": None, "processing_class": None}
    spoil = At(3, lambda **_: model.lm_head.register_forward_hook(out_of_memory))
    with caplog.at_level(logging.WARNING, "hfsae"):
        output = trainer(folder, steps=3, eval_tokens=150, inputs=inputs, callbacks=[spoil], **named).train()
    assert output.completed and output.metrics == {}
    (warning,) = [text for text in caplog.messages if "The run goes on" in text]
    assert warning.startswith("not measured: OutOfMemoryError: no room for logits. The run goes on; measure by hand: ")
    saved = SAE.from_pretrained(folder)
    assert torch.equal(saved.W_dec, output.sae.W_dec) and saved.config.metrics is None
    assert "has not been evaluated" in (folder / "README.md").read_text()

    command = shlex.split(warning.split("by hand: ")[1])
    assert command[0] == "hfsae" and main(command[1:]) == 0
    undisturbed = trainer(tmp_path / "other", steps=3, eval_tokens=150, inputs={**inputs, "model": None}, **named)
    expected, measured = undisturbed.train().metrics[""], SAE.from_pretrained(folder).config.metrics
    apart = ("protocol", "baselines")
    assert {name: measured[name] for name in expected if name not in apart} == {
        name: value for name, value in expected.items() if name not in apart
    }
    # Their matrices are fitted anew, whose last bits depend on where in memory they lie.
    for name, figures in expected["baselines"].items():
        assert measured["baselines"][name] == pytest.approx(figures)


def test_a_calibration_that_fails_costs_no_sae(tmp_path, caplog):
    spoil = At(3, lambda saes, **_: setattr(saes[""], "calibrate", out_of_memory))
    options = CALIBRATED | {"steps": 3}
    with caplog.at_level(logging.WARNING, "hfsae"):
        output = trainer(
            tmp_path, inputs={"activations": sparse_rows(2000)}, calibration_tokens=200, callbacks=[spoil], **options
        ).train()
    (warning,) = [text for text in caplog.messages if "The run goes on" in text]
    assert warning.startswith("SAE not calibrated: OutOfMemoryError") and "sae.calibrate" in warning
    assert torch.equal(SAE.from_pretrained(tmp_path).threshold, output.sae.threshold)


def test_an_sae_that_cannot_be_written_costs_no_other(tmp_path):
    """A file stands where the first one's folder is to be."""
    saes = {name: TopKSAEConfig(d_in=16, n_features=48, k=k) for name, k in (("two", 2), ("four", 4))}
    block = At(2, lambda **_: (tmp_path / "two").write_text("taken"))
    with pytest.raises(OSError, match="two could not be written.*every other SAE of the run is saved"):
        trainer(tmp_path, steps=2, inputs={"saes": saes}, callbacks=[block]).train()
    assert SAE.from_pretrained(tmp_path / "four").config.training["steps"] == 2


def test_objects_without_names_are_measured_by_hand_in_python(tmp_path, caplog):
    model = language_model()
    spoil = At(2, lambda **_: model.lm_head.register_forward_hook(out_of_memory))
    with caplog.at_level(logging.WARNING, "hfsae"):
        trainer(tmp_path, steps=2, eval_tokens=100, inputs={"model": model}, callbacks=[spoil]).train()
    assert f"SAE.from_pretrained({[str(tmp_path)]}), evaluate_sae(sae, model, text, tokenizer)" in caplog.text


@pytest.mark.parametrize(
    ("file", "message", "by_hand"),
    [
        ("training_curve.png", "pictures of", "hfsae card"),
        ("README.md", "card of", "hfsae card"),
        ("report.html", "no page about", "hfsae dashboard"),
        ("metrics.json", "metrics not written into", "hfsae eval"),
    ],
)
def test_a_file_that_cannot_be_written_costs_no_other(tmp_path, caplog, file, message, by_hand):
    """A folder stands where the file is to be."""
    written = {"training_curve.png", "README.md", "report.html", "metrics.json"}
    block = At(2, lambda **_: (tmp_path / file / "taken").mkdir(parents=True))
    options = {"eval_tokens": 100, "html_report": True, "logging_steps": 1}
    with caplog.at_level(logging.WARNING, "hfsae"):
        output = trainer(tmp_path, steps=2, callbacks=[block], **options).train()
    (warning,) = [text for text in caplog.messages if "The run goes on" in text]
    assert message in warning and f"by hand: {by_hand} {tmp_path}" in warning
    assert SAE.from_pretrained(tmp_path).config.metrics == json.loads(json.dumps(output.metrics[""]))
    assert {name for name in written if (tmp_path / name).is_file()} == written - {file}


def test_figures_of_an_earlier_run_do_not_stay_beside_new_weights(tmp_path):
    trainer(tmp_path, steps=2, eval_tokens=100).train()
    trainer(tmp_path, steps=3, overwrite_output_dir=True).train()
    assert SAE.from_pretrained(tmp_path).config.metrics is None and not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("architecture", ["jumprelu", "standard", "gated"])
def test_a_run_too_short_for_its_target_says_so_and_name_and_card_say_what_it_became(tmp_path, caplog, architecture):
    trainer(tmp_path, steps=4, architecture=architecture, target_l0=2, k=30, eval_tokens=150).train()
    (said,) = [message for message in caplog.messages if "was asked for" in message]
    config = SAE.from_pretrained(tmp_path).config
    became = config.training["final_l0"]
    assert became > 2.2 and f"L0 is {became:.3g}, but 2 was asked for" in said and "3,200 tokens (100 steps)" in said
    assert display_name(config, None, None).endswith(f"-l0_{became:.3g}")
    assert display_name(config, "org/zoo", f"{architecture}-l0-2") == f"zoo/{architecture}-l0-2 (L0 {became:.3g})"
    assert "training was to steer to 2 and ended at" in (tmp_path / "README.md").read_text()


def test_a_run_that_nobody_steers_says_nothing_of_a_target(tmp_path, caplog):
    trainer(tmp_path, steps=4, architecture="topk").train()
    assert not [message for message in caplog.messages if "was asked for" in message]
    assert SAE.from_pretrained(tmp_path).config.training["target_l0"] is None


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_without_text_for_calibration_thresholds_stay_and_the_evaluation_takes_its_own_beginning(
    tmp_path, architecture
):
    one = Dataset.from_dict({"text": ["w1 w2 w3 w4 w5 " * 50]})  # nothing can be kept of it
    options = {"calibration_tokens": 0, "evaluation_share": 0.2, "architecture": architecture, "eval_tokens": 60}
    inputs = {"model": language_model(), "train_dataset": text(40)}
    metrics = trainer(tmp_path / "a", inputs=inputs, **options).train().metrics[""]
    assert metrics["protocol"]["calibration"] is None and metrics["ce_mean"] is not None and metrics["baselines"]
    output = trainer(tmp_path / "b", inputs={**inputs, "train_dataset": one}, **options | {"eval_tokens": 0}).train()
    assert output.saes[""].config.metrics is None
