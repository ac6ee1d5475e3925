"""Training SAEs that write elsewhere than they read."""

import json

import pytest
import torch
from torch import Tensor

from hfsae import SAE, TopKSAEConfig
from hfsae.estimate.run_needs import estimate
from hfsae.inputs.activation_cache import cache_activations
from hfsae.sweeps.sweep import Sweep, run_sweep
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import OF_TWO_PLACES, arguments, contents, sparse_rows, stop_at, text, trainer

READS, WRITES = "transformer.h.1.mlp.input", "transformer.h.1.mlp.output"
MLP = {"hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1"}
D_OUT = 6


def planted(rows: int = 4000) -> dict[str, Tensor]:
    """Activations of few directions each, and what other directions in their place make."""
    generator = torch.Generator().manual_seed(3)
    read = sparse_rows(rows)
    bend = torch.randn(16, 24, generator=generator), torch.randn(24, D_OUT, generator=generator)
    return {"before": read, "after": torch.relu(read @ bend[0]) @ bend[1] + 5}


# -- what is learned --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"architecture_options": {"skip": True}}], ids=["plain", "skip"])
@pytest.mark.parametrize("architecture", OF_TWO_PLACES)
def test_every_architecture_learns_to_write_what_it_does_not_read(tmp_path, architecture, options):
    run = trainer(
        tmp_path,
        inputs={"activations": planted()},
        hook_point="before",
        target_hook_point="after",
        architecture=architecture,
        n_features=64,
        k=8,
        steps=250,
        learning_rate=0.01,
        logging_steps=50,
        **options,
    )
    output = run.train()
    first, last = (output.log_history[at]["explained_variance"] for at in (0, -1))
    assert last > 0.75 and last > first
    config = SAE.from_pretrained(tmp_path).config
    assert (config.hook_point, config.target_hook_point, config.d_in, config.d_out) == ("before", "after", 16, D_OUT)
    assert config.skip == bool(options) and not config.subtract_b_dec


def test_of_a_language_model_it_knows_both_places_and_is_measured_where_it_writes(tmp_path):
    output = trainer(tmp_path, steps=40, eval_tokens=200, **MLP).train()
    sae = SAE.from_pretrained(tmp_path)
    assert (sae.config.hook_point, sae.config.target_hook_point) == (READS, WRITES)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["explained_variance"] == output.metrics[""]["explained_variance"] > 0.3
    assert "a transcoder has none" in metrics["notes"]["baselines"]
    card = (tmp_path / "README.md").read_text()
    assert "A transcoder" in card and f"predicts those at `{WRITES}`" in card


def test_each_of_several_places_has_a_target_of_its_own_or_all_have_one(tmp_path):
    both = {"hook_point": "mlp_in.0, mlp_in.1", "target_hook_point": "mlp_out.*"}
    saes = trainer(tmp_path / "each", steps=2, **(both | {"target_hook_point": "mlp_out.0, mlp_out.1"})).train().saes
    places = {name: (sae.config.hook_point, sae.config.target_hook_point) for name, sae in saes.items()}
    assert places == {
        f"mlp_in.{layer}": (f"transformer.h.{layer}.mlp.input", f"transformer.h.{layer}.mlp.output")
        for layer in (0, 1)
    }
    saes = trainer(tmp_path / "one", steps=2, **(both | {"target_hook_point": "mlp_out.1"})).train().saes
    assert [sae.config.target_hook_point for sae in saes.values()] == [WRITES, WRITES]
    with pytest.raises(ValueError, match="hook_point names 2 places and target_hook_point 3: .* in the same order"):
        trainer(tmp_path / "none", **both).train()


def test_several_on_activations_of_ones_own_share_the_places_of_the_run(tmp_path):
    inputs = {"activations": planted(400), "saes": {"narrow": {"n_features": 32}, "wide": {"n_features": 64}}}
    saes = trainer(tmp_path, inputs=inputs, hook_point="before", target_hook_point="after", steps=2).train().saes
    assert {(sae.config.hook_point, sae.config.target_hook_point) for sae in saes.values()} == {("before", "after")}


def test_autoencoders_and_transcoders_share_a_stream(tmp_path):
    saes = {
        "config": TopKSAEConfig(
            d_in=16, n_features=48, k=4, hook_point="mlp_in.1", target_hook_point="mlp_out.1", subtract_b_dec=False
        ),
        "arguments": MLP,
        "autoencoder": {"hook_point": "mlp_in.1"},
        "same place": {"hook_point": "mlp_in.1", "target_hook_point": READS},
    }
    found = trainer(tmp_path / "all", inputs={"saes": saes}, steps=6).train().saes
    assert [sae.config.is_transcoder for sae in found.values()] == [True, True, False, False]
    for name, alone in (("arguments", MLP), ("autoencoder", {"hook_point": "mlp_in.1"})):
        expected = trainer(tmp_path / name, steps=6, **alone).train().sae.state_dict()
        assert all(torch.equal(tensor, found[name].state_dict()[key]) for key, tensor in expected.items())
    config, told = (dict(found[name].state_dict()) for name in ("config", "arguments"))
    assert all(torch.equal(tensor, told[key]) for key, tensor in config.items())


# -- as any other run -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["topk", "gated"])
def test_a_run_goes_on_bit_by_bit_while_features_are_revived(tmp_path, architecture):
    dying = {"revival": "auxk", "dead_feature_window": 32, "n_features": 96}
    options = {"steps": 20, "architecture": architecture, **dying, **MLP}
    for name, stops in (("whole", [13]), ("broken", [5, 13])):
        for stop in stops:
            resume = "last" if stop != stops[0] else None
            output = trainer(tmp_path / name, callbacks=[stop_at(stop)], **options).train(resume)
    assert output.log_history[-1]["dormant_fraction"] > 0
    whole, broken = (contents(tmp_path / name / "checkpoint-13") for name in ("whole", "broken"))
    assert whole == broken


def test_from_a_cache_it_ends_as_from_the_language_model(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    place = {"model_name_or_path": str(tmp_path / "lm"), "dataset_name": str(tmp_path / "text.jsonl"), **MLP}
    inputs = {"model": None, "train_dataset": None, "processing_class": None}
    cache_activations(arguments(tmp_path / "cache", **place))
    ends = [
        trainer(tmp_path / name, inputs=inputs, eval_tokens=100, **place, **cached).train()
        for name, cached in (("from_lm", {}), ("from_cache", {"activation_cache": str(tmp_path / "cache")}))
    ]
    assert all(map(torch.equal, ends[0].sae.parameters(), ends[1].sae.parameters()))
    assert ends[0].metrics[""]["explained_variance"] == ends[1].metrics[""]["explained_variance"]


def test_it_can_go_on_from_one_that_was_trained(tmp_path):
    before = trainer(tmp_path / "before", steps=4, **MLP).train().sae
    options = {"init_from": str(tmp_path / "before"), "steps": 4, "learning_rate": 1e-9, "hook_point": "mlp_in.1"}
    after = trainer(tmp_path / "after", **options).train().sae
    assert after.config.target_hook_point == WRITES
    assert torch.allclose(after.encoder.weight, before.encoder.weight, atol=1e-6)


def test_a_sweep_over_widths_says_where_they_write(tmp_path):
    content = {**arguments(tmp_path, eval_tokens=100, steps=4, **MLP).given(), "n_features": [32, 64]}
    inputs = {"model": language_model(), "train_dataset": text(), "processing_class": pythia_like()}
    run_sweep(Sweep.of(content), **inputs)
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["hook_point"] for row in found["saes"]} == {f"{READS} to {WRITES}"} == set(found["front"])


def test_what_it_needs_is_estimated_with_what_it_writes(tmp_path):
    needs = estimate(arguments(tmp_path, **MLP), model=language_model())
    trained = trainer(tmp_path, steps=1, **MLP).train().sae
    assert needs.saes[""].parameters == sum(parameter.numel() for parameter in trained.parameters())
    alone = estimate(arguments(tmp_path, hook_point="mlp_in.1"), model=language_model())
    assert needs.window_bytes == 2 * alone.window_bytes


# -- what does not fit ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revival": "resample"}, "a transcoder reconstructs others than it reads. Use revival='auxk'"),
        ({"target_hook_point": "mlp_outt.1"}, "mlp_outt"),
        (
            {"inputs": {"activations": planted(100)}, "hook_point": "before", "target_hook_point": "behind"},
            "writes 'behind', but the activations given are of before, after",
        ),
        (
            {
                "inputs": {
                    "activations": planted(100),
                    "saes": TopKSAEConfig(d_in=16, n_features=32, k=4, hook_point="before", target_hook_point="after"),
                }
            },
            "d_out=16, but the activations at after have 6 dimensions",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **{**MLP, **options}).train()
    assert not list(tmp_path.glob("checkpoint-*"))
