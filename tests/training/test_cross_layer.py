"""Training a cross-layer transcoder: in one pass of a model, from activations that were brought, resumed, refused."""

import json

import pytest
import torch

from hfsae import SAE, attach_all
from hfsae.estimate.run_needs import estimate
from tests.data.tiny import language_model
from tests.quick import mostly_slow
from tests.training.tiny import arguments, contents, sparse_rows, stop_at, trainer

ALL = {"hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*"}
RULES = ("cross_layer_transcoder", "topk_cross_layer_transcoder", "jumprelu_cross_layer_transcoder")
LAYERS = len(language_model().transformer.h)
every_rule = pytest.mark.parametrize("architecture", mostly_slow(RULES, quick=RULES[:1]))


@every_rule
def test_of_a_language_model_it_knows_all_places_and_is_measured_at_each_and_at_all_at_once(
    tmp_path, caplog, architecture
):
    options = {"architecture": architecture, "n_features": LAYERS * 48, "steps": 60, "eval_tokens": 200}
    output = trainer(tmp_path, learning_rate=0.01, **ALL, **options).train()
    if architecture in RULES[:2]:  # k = 4: L0 adds up over the layers, and so does its range
        assert f"below {5 * LAYERS}: so few features" in caplog.text
    sae = SAE.from_pretrained(tmp_path)
    names = [f"mlp_in.{layer}" for layer in range(LAYERS)]
    assert sae.config.source_names == names and sae.config.features_per_layer == 48
    assert sae.config.source_places == [f"transformer.h.{layer}.mlp.input" for layer in range(LAYERS)]
    assert sae.config.target_places == [f"transformer.h.{layer}.mlp.output" for layer in range(LAYERS)]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == output.metrics[""] and list(metrics["sources"]) == names
    assert min(of["explained_variance"] for of in metrics["sources"].values()) > 0.2
    assert metrics["n_layers"] == LAYERS and metrics["l0"] == pytest.approx(
        sum(of["l0"] for of in metrics["sources"].values())
    )
    together = metrics["together"]
    assert together["ce_with_errors"] == pytest.approx(together["ce_clean"], rel=1e-4)
    assert together["ce_spliced"] != together["ce_clean"] and together["kl"] > 0
    model = language_model()
    with attach_all(model, sae.by_layer(), splice=True) as runs:
        model(torch.arange(12)[None])
    assert runs["mlp_in.0"].features.shape == (1, 12, 48)
    card = (tmp_path / "README.md").read_text()
    assert "A cross-layer transcoder" in card and "With the activations of all layers replaced at once" in card
    assert all(f"| `{name}` |" in card for name in names)
    assert f"| {10 * LAYERS} – {100 * LAYERS} | features active on a token" in card
    if architecture == "cross_layer_transcoder":
        assert sae.threshold.shape == (LAYERS,) and (sae.threshold > 0).all()


@every_rule
def test_going_on_gives_bit_for_bit_the_run_that_was_not_interrupted(tmp_path, architecture):
    options = {"architecture": architecture, "n_features": LAYERS * 16, "steps": 12, "save_steps": 12, **ALL}
    options |= {"dead_feature_window": 64}
    trainer(tmp_path / "whole", **options).train()
    stopped = options | {"save_steps": 5}
    trainer(tmp_path / "parts", callbacks=[stop_at(5)], **stopped).train()
    trainer(tmp_path / "parts", resume_from_checkpoint="last", **options).train()
    assert contents(tmp_path / "whole" / "checkpoint-12") == contents(tmp_path / "parts" / "checkpoint-12")


def test_activations_of_ones_own_are_joined_as_they_are_named(tmp_path):
    rows = {f"{side}{layer}": sparse_rows(2000, seed=layer + 5 * (side == "y")) for side in "xy" for layer in (0, 1)}
    rows["y1"] = rows["x0"] * 0.5 + rows["x1"]
    rows["y0"] = rows["x0"] * 2
    output = trainer(
        tmp_path,
        inputs={"activations": rows},
        hook_point="x0+x1",
        target_hook_point="y0+y1",
        architecture="topk_cross_layer_transcoder",
        n_features=128,
        k=8,
        steps=200,
        learning_rate=0.01,
        logging_steps=100,
    ).train()
    assert output.log_history[-1]["explained_variance"] > 0.75
    assert SAE.from_pretrained(tmp_path).config.source_names == ["x0", "x1"]


REFUSED = {
    "no target": ({"target_hook_point": None}, "pass target_hook_point too, such as hook_point='mlp_in"),
    "too few targets": ({"target_hook_point": "mlp_out.0"}, "Name as many, in the same order"),
    "backwards": (
        {"hook_point": "mlp_in.1,mlp_in.0", "target_hook_point": "mlp_out.1,mlp_out.0"},
        "name the first one first",
    ),
    "resample": ({"revival": "resample"}, "Use revival='auxk'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_before_a_step(tmp_path, case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, architecture=RULES[0], n_features=LAYERS * 16, **(ALL | options)).train()


@pytest.mark.parametrize("tied", [False, True])
def test_an_estimate_counts_the_decoders_to_all_later_layers(tmp_path, tied):
    options = {"architecture": RULES[0], "n_features": LAYERS * 64, "architecture_options": {"tied_decoder": tied}}
    needs = estimate(arguments(tmp_path, **options, **ALL), model=language_model()).saes[""]
    width, pairs = language_model().config.n_embd, LAYERS * (LAYERS + 1) // 2
    decoders = 64 * width * LAYERS + 64 * pairs if tied else 64 * width * pairs
    assert needs.parameters == 64 * LAYERS * width + 64 * LAYERS + decoders + LAYERS * width
    assert needs.state_bytes == 16 * needs.parameters
