"""A set: a transcoder for every layer in one pass of the model, measured as a whole, with one card and one record."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from hfsae import SAE, attach_all, evaluate_together, load_saes
from hfsae.arguments.config_file import read_config
from hfsae.data import TokenBlocks
from hfsae.estimate.run_needs import estimate
from hfsae.evaluation.saved_set import SET_FILE, SET_PLOT
from hfsae.evaluation.together import are_set
from hfsae.inputs.activation_cache import cache_activations
from hfsae.sweeps.sweep import Sweep, run_sweep
from tests.data.tiny import language_model, pythia_like
from tests.quick import mostly_slow
from tests.training.tiny import OF_TWO_PLACES, arguments, contents, stop_at, text, trainer

SET = {"hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*"}
NAMES = ["mlp_in.0", "mlp_in.1", "mlp_in.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set that was trained, measured and saved, and what training returned of it."""
    place = tmp_path_factory.mktemp("run") / "set"
    output = trainer(place, steps=30, eval_tokens=200, architecture_options={"skip": True}, **SET).train()
    return place, output


def test_every_layer_has_a_transcoder_in_its_subfolder(folder):
    saes = load_saes(folder[0])
    assert list(saes) == NAMES
    for layer, sae in enumerate(saes.values()):
        places = (sae.config.hook_point, sae.config.target_hook_point)
        assert places == (f"transformer.h.{layer}.mlp.input", f"transformer.h.{layer}.mlp.output") and sae.config.skip


def test_the_whole_set_is_measured_on_the_evaluation_text_of_each(folder):
    place, output = folder
    record = json.loads((place / SET_FILE).read_text())
    assert record == output.together and record["n_saes"] == 3
    each = output.metrics["mlp_in.0"]
    assert record["n_tokens"] == each["n_tokens"]
    assert record["ce_clean"] == pytest.approx(each["ce_clean"], rel=1e-6)
    assert record["protocol"]["tokens_sha256"] == each["protocol"]["tokens_sha256"]
    assert abs(record["ce_with_errors"] - record["ce_clean"]) < 1e-5 < abs(record["ce_increase"])


def test_one_card_has_a_row_a_layer_and_the_figures_of_the_whole(folder):
    place, output = folder
    card = (place / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0].replace("\\", "") for row in rows] == [f"| [{name}" for name in NAMES]
    assert f"| all reconstructions in place | {output.together['ce_spliced']:.4g} |" in card
    assert "errors of the untouched run added back" in card and "attach_all(model, saes, splice=True)" in card
    assert (place / SET_PLOT).is_file() and f"]({SET_PLOT})" in card
    for name in NAMES:
        assert (place / name / "README.md").is_file()


def test_what_was_trained_is_what_was_measured(folder):
    saes, output = load_saes(folder[0]), folder[1]
    blocks = TokenBlocks(text(), pythia_like(), context_length=12, batch_size=8, exclude_positions=[0], repeat=False)
    measured = [
        evaluate_together(some, language_model(), blocks, max_tokens=300, disable_tqdm=True)["kl"]
        for some in (saes, output.saes)
    ]
    assert measured[0] == measured[1] > 0
    model = language_model()
    with torch.no_grad(), attach_all(model, saes, splice=True) as runs:
        model(torch.tensor([[5, 6, 7, 8]]))
    assert all(run.features.shape == (1, 4, 48) for run in runs.values())


@pytest.mark.parametrize("architecture", mostly_slow(OF_TWO_PLACES, quick=["topk"]))
def test_every_architecture_makes_a_set(tmp_path, architecture):
    output = trainer(tmp_path, steps=4, eval_tokens=100, architecture=architecture, **SET).train()
    assert list(output.saes) == NAMES and output.together["kl"] > 0
    assert output.together["with_errors_difference"] < 1e-4


def test_a_set_that_was_interrupted_ends_as_one_that_was_not(tmp_path, folder):
    options = {"steps": 30, "eval_tokens": 200, "architecture_options": {"skip": True}, **SET}
    place = tmp_path / "set"
    assert trainer(place, callbacks=[stop_at(11)], **options).train().together is None
    assert not (place / SET_FILE).exists()
    trainer(place, **options).train(resume_from_checkpoint=True)
    whole, resumed = contents(folder[0] / "checkpoint-30"), contents(place / "checkpoint-30")
    assert resumed == whole
    first, second = (json.loads((run / SET_FILE).read_text()) for run in (folder[0], place))
    assert first == second


def test_alone_or_in_company_a_transcoder_ends_the_same(tmp_path, folder):
    one = {"hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1", "architecture_options": {"skip": True}}
    trainer(tmp_path, steps=30, **one).train()
    alone, among = SAE.from_pretrained(tmp_path), SAE.from_pretrained(folder[0], subfolder="mlp_in.1")
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, among.state_dict()[name]), name


def test_a_set_from_a_cache_ends_as_from_the_language_model(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    named = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl"), **SET}
    inputs = {"model": None, "train_dataset": None, "processing_class": None}
    assert set(cache_activations(arguments(tmp_path / "cache", **named)).widths.values()) == {16}
    for name, cached in (("lm-run", {}), ("cache-run", {"activation_cache": str(tmp_path / "cache")})):
        trainer(tmp_path / name, inputs=inputs, eval_tokens=100, **named, **cached).train()
    first, second = (json.loads((tmp_path / name / SET_FILE).read_text()) for name in ("lm-run", "cache-run"))
    assert first["protocol"]["weights_sha256"] == second["protocol"]["weights_sha256"]
    assert first["kl"] == second["kl"] and first["ce_spliced"] == second["ce_spliced"]


@pytest.mark.slow
@pytest.mark.parametrize("wild", [True, False])
def test_a_sweep_over_sets_lists_every_transcoder_by_its_place_and_is_no_set_itself(tmp_path, wild):
    content = {**arguments(tmp_path, eval_tokens=100, steps=4).given(), "k": [2, 4]}
    inputs = {"model": language_model(), "train_dataset": text(), "processing_class": pythia_like()}
    layers = [{"hook_point": f"mlp_in.{layer}", "target_hook_point": f"mlp_out.{layer}"} for layer in range(3)]
    output = run_sweep(Sweep.of(content | (SET if wild else {"saes": layers})), **inputs)
    if wild:
        assert list(output.saes) == [f"topk-k{k}-mlp_in.{layer}" for k in (2, 4) for layer in range(3)]
    assert len(output.saes) == 6 and output.together is None and not (tmp_path / SET_FILE).exists()
    found = json.loads((tmp_path / "results.json").read_text())
    places = [f"transformer.h.{layer}.mlp.input to transformer.h.{layer}.mlp.output" for layer in range(3)]
    assert sorted(found["front"]) == places
    assert sorted((row["hook_point"], row["l0"]) for row in found["saes"]) == [
        (place, pytest.approx(k, rel=0.1)) for place in places for k in (2, 4)
    ]
    alone = trainer(tmp_path / "alone", steps=4, eval_tokens=100, k=2, **SET).train()
    for sae in output.saes.values():
        if sae.config.k == 2:
            same = alone.saes[f"mlp_in.{sae.config.hook_point.split('.')[2]}"]
            assert torch.equal(sae.W_dec, same.W_dec)


def test_only_transcoders_with_targets_of_their_own_are_a_set(tmp_path):
    for number, places in enumerate(({"hook_point": "resid_post.*"}, {**SET, "target_hook_point": "mlp_out.2"})):
        run = trainer(tmp_path / str(number), steps=2, eval_tokens=100, **places)
        assert run.train().together is None and not are_set(run._run.hook_points.values())
        assert not (tmp_path / str(number) / SET_FILE).exists()


def test_the_estimate_knows_every_transcoder_of_a_set(tmp_path):
    needs = estimate(arguments(tmp_path, **SET), model=language_model(), device_type="cpu")
    assert len(needs.saes) == 3


def test_the_config_that_comes_along_trains_a_set_of_the_embedded_model():
    values = read_config("transcoder_set")
    assert values["hook_point"] == "mlp_in.*" and values["target_hook_point"] == "mlp_out.*"
    sweep = Sweep.read("transcoder_set", {"n_features": "64"})
    needs = estimate(sweep.args, sweep.saes, device_type="cpu")
    assert len(needs.saes) == 4 and AutoTokenizer.from_pretrained(values["model_name_or_path"]) is not None
