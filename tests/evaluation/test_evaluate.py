"""Whole evaluations against the metrics written out by hand, and what they leave behind."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from hfsae import SAE, JumpReLUSAEConfig, MatryoshkaSAEConfig, StandardSAEConfig, TopKSAEConfig
from hfsae.data import TokenBatch, TokenBlocks
from hfsae.evaluation import MEASURED, evaluate_sae, evaluate_saes, report
from hfsae.evaluation.spliced_model import SplicedModel
from hfsae.hooks import HookPointError, capture
from tests.data.tiny import language_model as language_model_of_words
from tests.data.tiny import pythia_like, text_dataset
from tests.evaluation import longhand
from tests.evaluation.tiny import (
    PLACE,
    VOCABULARY,
    WIDTH,
    batches,
    constant_sae,
    identity_sae,
    language_model,
    make_sae,
    tokens_of,
)
from tests.hooks.witness import count_hooks, recorded, replaced

CALIBRATION = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(9)) + 0.5


def evaluate(sae: SAE, data=None, **options) -> dict:
    options = {"calibration": CALIBRATION, "disable_tqdm": True} | options
    return evaluate_sae(sae, language_model(), batches() if data is None else data, **options)


@torch.no_grad()
def activations_at(place: str, data: list[TokenBatch]) -> Tensor:
    """Those of all tokens that count."""
    rows = []
    for batch in data:
        with recorded(language_model(), [place]) as seen:
            language_model()(batch.input_ids, attention_mask=batch.attention_mask)
        rows.append(seen[place][batch.keep])
    return torch.cat(rows)


@torch.no_grad()
def by_hand(sae: SAE, data: list[TokenBatch], source: str, target: str, mean: Tensor) -> dict[str, float]:
    """All metrics of one SAE, from plain runs of the model over one sequence after the other."""
    model = language_model()
    tables: dict[str, list[np.ndarray]] = {name: [] for name in ("y", "y_hat", "z")}
    logits: dict[str, list[np.ndarray]] = {name: [] for name in ("clean", "spliced", "zero", "mean")}
    columns: list[tuple[np.ndarray, ...]] = []
    for batch in data:
        for ids, mask, keep in zip(*batch, strict=True):
            ids, mask = ids[None], mask[None]
            with recorded(model, [source, target]) as seen:
                logits["clean"].append(model(ids, attention_mask=mask).logits.numpy())
            x, y = seen[source], seen[target]
            y_hat, z = sae(x).reconstruction, sae.encode(x)
            for name, table in (("y", y), ("y_hat", y_hat), ("z", z)):
                tables[name].append(table[0, keep].numpy())
            for name, other in (("spliced", y_hat), ("zero", torch.zeros_like(y)), ("mean", mean.expand_as(y))):
                with replaced(model, target, lambda own, other=other: torch.where(keep[:, None], other, own)):  # noqa: B023
                    logits[name].append(model(ids, attention_mask=mask).logits.numpy())
            columns.append((ids[0].numpy(), mask[0].numpy(), keep.numpy()))
    ids, mask, keep = (np.stack(parts) for parts in zip(*columns, strict=True))
    stacked = {name: np.concatenate(parts) for name, parts in tables.items()}
    runs = {name: np.concatenate(parts) for name, parts in logits.items()}
    return {
        **longhand.reconstruction(stacked["y"], stacked["y_hat"], stacked["z"]),
        **longhand.predictions(runs, ids, mask, keep),
    }


# -- the figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TopKSAEConfig(d_in=WIDTH, n_features=40, k=4, hook_point=PLACE),
        TopKSAEConfig(
            d_in=WIDTH, n_features=40, k=4, hook_point="transformer.h.2.input", exclude_special_tokens=False
        ),
        StandardSAEConfig(d_in=WIDTH, n_features=40, hook_point="transformer.h.0.mlp.output"),
        JumpReLUSAEConfig(d_in=WIDTH, n_features=40, hook_point="transformer.h.2.output"),
    ],
    ids=["topk-block-output", "topk-block-input", "standard-mlp-output", "jumprelu-last-block"],
)
def test_every_metric_is_what_it_is_by_hand(config):
    torch.manual_seed(0)
    sae = SAE.from_config(config).eval()
    measured = evaluate(sae)
    expected = by_hand(sae, batches(), config.hook_point, config.hook_point, CALIBRATION.mean(0))
    assert measured.keys() == MEASURED.keys() | {"n_tokens", "notes", "protocol"}
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert measured["n_tokens"] == tokens_of(batches()) and measured["notes"] == {}


def test_a_transcoder_is_measured_where_it_writes():
    fields = {"target_hook_point": "transformer.h.1.mlp.output", "subtract_b_dec": False}
    sae = make_sae("transformer.h.1.mlp.input", **fields)
    measured = evaluate(sae, calibration=CALIBRATION + 1, baselines=True)
    expected = by_hand(sae, batches(), sae.config.hook_point, sae.config.target_hook_point, CALIBRATION.mean(0) + 1)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)
    assert measured["baselines"] == {} and "transcoder" in measured["notes"]["baselines"]


def test_an_sae_that_loses_nothing_recovers_everything():
    metrics = evaluate(identity_sae())
    assert metrics["loss_recovered"] == pytest.approx(1, abs=1e-5)
    assert metrics["explained_variance"] == pytest.approx(1) and metrics["cosine"] == pytest.approx(1)
    assert metrics["kl"] == pytest.approx(0, abs=1e-5) and metrics["ce_increase"] == pytest.approx(0, abs=1e-5)


def test_an_sae_that_writes_zero_recovers_nothing():
    metrics = evaluate(constant_sae(torch.zeros(WIDTH)))
    assert metrics["loss_recovered"] == 0 and metrics["ce_spliced"] == metrics["ce_zero"]
    assert metrics["l0"] == 0 and metrics["dead_fraction"] == 1 and metrics["l2_ratio"] == 0


def test_an_sae_that_writes_the_mean_explains_nothing():
    mean = activations_at(PLACE, batches()).mean(0)
    metrics = evaluate(constant_sae(mean), calibration=mean[None])
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss_recovered_mean"] == pytest.approx(0, abs=1e-6)


def test_left_out_tokens_keep_their_own_activation_in_the_ablated_runs_too():
    # Leaving one more position out means ablating it no more, so the others do better.
    more_left_out = [batch._replace(keep=batch.keep.clone()) for batch in batches()]
    for batch in more_left_out:
        batch.keep[:, 1:9] = False
    few = evaluate(make_sae(), more_left_out)
    for run, other in (("ce_zero", torch.zeros(WIDTH)), ("ce_mean", CALIBRATION.mean(0))):
        expected = by_hand(constant_sae(other), more_left_out, PLACE, PLACE, CALIBRATION.mean(0))["ce_spliced"]
        assert few[run] == pytest.approx(expected, rel=1e-5)
        everywhere = ablated_everywhere(more_left_out, other)
        assert abs(few[run] - everywhere) > 0.1, "ablating them would have shown"


@torch.no_grad()
def ablated_everywhere(data: list[TokenBatch], other: Tensor) -> float:
    nats = []
    for batch in data:
        with replaced(language_model(), PLACE, lambda x: other.expand_as(x)):
            logits = language_model()(batch.input_ids, attention_mask=batch.attention_mask).logits
        counts = batch.keep[:, :-1] & batch.attention_mask[:, 1:].bool()
        log = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        nats.append(-log[counts])
    return torch.cat(nats).mean().item()


def test_a_place_that_the_model_hardly_uses_has_no_loss_recovered():
    model = language_model_of_words()  # fresh from initialisation: its logits hardly move
    sae = make_sae("transformer.h.1.output")
    metrics = evaluate_sae(sae, model, text_dataset(60, 60), pythia_like(), disable_tqdm=True)
    assert metrics["loss_recovered"] is None and metrics["loss_recovered_mean"] is None
    assert "less than 0.05" in metrics["notes"]["loss_recovered"]


# -- many at once ----------------------------------------------------------------------------------------------------


def test_many_saes_at_once_get_the_figures_they_get_alone():
    saes = {
        "a": make_sae(),
        "b": make_sae(k=9, seed=2),
        "c": make_sae("resid_pre.2", n_features=24),
        "d": make_sae("transformer.h.0.attn.output"),
    }
    calibration = {"resid_post.1": CALIBRATION, "resid_pre.2": CALIBRATION * 2, "attn_out.0": CALIBRATION * 3}
    options = {"calibration": calibration, "baselines": True, "disable_tqdm": True}
    together = evaluate_saes(saes, language_model(), batches(), **options)
    assert list(together) == list(saes)
    for name, sae in saes.items():
        alone = evaluate_saes({name: sae}, language_model(), batches(), **options)
        assert together[name] == alone[name]


def test_baselines_that_are_alike_are_measured_once():
    # The first two differ in what they learned alone, the third in its active features, the fourth in its width.
    saes = {"a": make_sae(), "b": make_sae(seed=2), "c": make_sae(k=9), "d": make_sae(n_features=24)}
    model, runs = copy.deepcopy(language_model()), []
    model.transformer.h[-1].register_forward_hook(lambda *_: runs.append(None))

    def runs_of(saes: dict[str, SAE]) -> int:
        runs.clear()
        evaluate_saes(saes, model, batches(), calibration={PLACE: CALIBRATION}, baselines=True, disable_tqdm=True)
        return len(runs)

    runs_of(saes)  # the first evaluation also learns what the model predicts
    one = runs_of({"a": saes["a"]})
    a_run = runs_of({"a": saes["a"], "b": saes["b"]}) - one  # over all batches
    assert runs_of({name: saes[name] for name in "ac"}) - one == 3 * a_run  # the SAE, both baselines
    assert runs_of({name: saes[name] for name in "ad"}) - one == 2 * a_run  # PCA knows no width
    assert runs_of(saes) - one == (1 + 3 + 2) * a_run


def test_the_batch_size_does_not_matter():
    model, dataset = language_model_of_words(initializer_range=0.5), text_dataset(100, 100, 100)  # type: ignore[arg-type]
    sae = make_sae("transformer.h.1.output", context_length=16)
    options = {"calibration": CALIBRATION, "disable_tqdm": True}
    results = [evaluate_sae(sae, model, dataset, pythia_like(), batch_size=size, **options) for size in (1, 3, 16)]
    for other in results[1:]:
        for name in MEASURED.keys() - {"density"}:
            expected = results[0][name]
            assert other[name] == (expected and pytest.approx(expected, rel=1e-5, abs=1e-7)), name
        assert other["density"] == results[0]["density"]


def test_a_model_that_is_run_in_full_in_small_pieces_gives_the_same(monkeypatch):
    with_shortcuts = evaluate(make_sae())
    monkeypatch.setattr("hfsae.evaluation.spliced_model.SplicedModel._check", lambda self, inputs: None)
    monkeypatch.setattr("hfsae.evaluation.spliced_model._LOGIT_BYTES", 2 * 4 * 12 * VOCABULARY * 4)
    assert evaluate(make_sae()) == {
        name: value if isinstance(value, dict | None) else pytest.approx(value, rel=1e-6)
        for name, value in with_shortcuts.items()
    }


# -- text and calibration --------------------------------------------------------------------------------------------


def test_without_calibration_the_beginning_of_the_text_gives_the_mean_and_is_not_evaluated():
    data = batches(4)
    metrics = evaluate(make_sae(), data, calibration=None)
    n_calibration = tokens_of(data) - metrics["n_tokens"]
    assert (
        0 < n_calibration <= tokens_of(data) / 8
        and f"{n_calibration:,} other tokens" in metrics["protocol"]["ablation"]
    )
    rows = activations_at(PLACE, data)
    keep = torch.cat([batch.keep for batch in data])
    first = int((keep.sum(1).cumsum(0) <= n_calibration).sum())
    rest = TokenBatch(*(torch.cat(parts)[first:] for parts in zip(*data, strict=True)))
    assert tokens_of([rest]) == metrics["n_tokens"]
    expected = by_hand(make_sae(), [rest], PLACE, PLACE, rows[:n_calibration].mean(0))
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_no_more_tokens_are_measured_than_asked_for():
    metrics = evaluate(make_sae(), max_tokens=30)
    assert 20 <= metrics["n_tokens"] == metrics["protocol"]["n_tokens"] <= 30


def test_evaluating_twice_gives_the_same_and_leaves_token_blocks_where_they_were():
    blocks = TokenBlocks(text_dataset(200, 200), pythia_like(), context_length=8, batch_size=4)
    state = blocks.state_dict()
    sae = make_sae("transformer.h.1.output")
    first, second = (
        evaluate_sae(sae, language_model_of_words(), blocks, max_tokens=100, disable_tqdm=True) for _ in range(2)
    )
    assert first == second and blocks.state_dict() == state


def test_too_little_text_for_a_mean_of_its_own_is_an_error():
    with pytest.raises(ValueError, match="too short to keep its beginning"):
        evaluate(make_sae(), [TokenBatch(*(part[:1] for part in batches(1)[0]))], calibration=None)


@pytest.mark.parametrize("shortcuts", [True, False])
def test_a_model_that_rules_tokens_out_is_measured_as_one_that_finds_them_impossible(monkeypatch, shortcuts: bool):
    """Logits of −inf against logits so low that their probability is 0, in a vocabulary longer than the text's."""
    found = []
    for lowest in (-torch.inf, -1e5):
        model = copy.deepcopy(language_model())
        model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
        model.lm_head.register_forward_hook(
            lambda head, _, logits, lowest=lowest: logits.index_fill(-1, torch.arange(VOCABULARY, 53), lowest)
        )
        if not shortcuts:
            monkeypatch.setattr(SplicedModel, "_check", lambda *_: None)
        found.append(evaluate_sae(make_sae(), model, batches(), calibration=CALIBRATION, disable_tqdm=True))
    for name in ("ce_clean", "ce_spliced", "ce_mean", "loss_recovered", "kl"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-6), name
    assert found[0]["kl"] > 0.1 and found[0]["notes"] == found[1]["notes"]


def with_one(value: float) -> Tensor:
    """The calibration, one of whose numbers is another."""
    changed = CALIBRATION.clone()
    changed[3, 2] = value
    return changed


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["without calibration", "with calibration"])
def test_activations_that_the_model_itself_gives_as_nan_are_refused(calibration: Tensor | None):
    model = copy.deepcopy(language_model())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[2] = torch.nan
    with pytest.raises(ValueError, match=r"activations at transformer\.h\.1\.output hold NaN or infinity"):
        evaluate_sae(make_sae(), model, batches(), calibration=calibration, disable_tqdm=True)


@pytest.mark.parametrize("max_tokens", [0, -5])
@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["without calibration", "with calibration"])
def test_no_tokens_to_measure_on_are_refused_as_such(max_tokens: int, calibration: Tensor | None):
    with pytest.raises(ValueError, match=f"max_tokens must be positive, got {max_tokens}"):
        evaluate(make_sae(), calibration=calibration, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ({"resid_post.0": CALIBRATION}, r"none of transformer\.h\.1\.output"),
        ({"resid_post.1": CALIBRATION[0]}, r"shape \(16,\); expected \(N, 16\)"),
        (CALIBRATION[:, :5], r"shape \(50, 5\); expected \(N, 16\)"),
        (CALIBRATION[:0], r"shape \(0, 16\)"),
        (with_one(torch.nan), r"activations of transformer\.h\.1\.output hold NaN or infinity in 1 of 50 rows"),
        (with_one(-torch.inf), "hold NaN or infinity in 1 of 50 rows"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(calibration, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make_sae(), calibration=calibration)


# -- what is said beside the figures ---------------------------------------------------------------------------------


def test_the_result_is_plain_json_with_a_full_protocol():
    metrics = evaluate(make_sae(), protocol={"dataset": "org/text", "split": "test"}, baselines=True)
    assert json.loads(json.dumps(metrics)) == metrics
    protocol = metrics["protocol"]
    assert protocol["dataset"] == "org/text" and protocol["split"] == "test"
    assert protocol["n_sequences"] == 12 and protocol["context_length"] == 12
    assert protocol["left_out"] == "padding, special tokens, position 0 of every block"
    assert protocol["dtype"] == "float32" and len(protocol["weights_sha256"]) == 64
    assert {"hfsae_version", "torch_version", "transformers_version", "ablation"} <= protocol.keys()


def test_baselines_are_measured_on_the_same_tokens_by_the_same_formulas():
    x = activations_at(PLACE, batches())
    metrics = evaluate(make_sae(), calibration=x, baselines=True)
    assert list(metrics["baselines"]) == ["untrained", "pca"]
    for figures in metrics["baselines"].values():
        assert figures["ce_zero"] == metrics["ce_zero"] and figures["ce_clean"] == metrics["ce_clean"]
        assert figures["loss_recovered"] > metrics["loss_recovered"]  # an SAE without scale and centre
    pca = metrics["baselines"]["pca"]
    assert pca["components"] == 4 and pca["l0"] == pytest.approx(4)
    # Fitted on the very activations that are measured, it explains what the four largest eigenvalues hold.
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.double().T))
    assert pca["explained_variance"] == pytest.approx((eigenvalues[-4:].sum() / eigenvalues.sum()).item(), rel=1e-5)


# -- what it leaves behind -------------------------------------------------------------------------------------------


def test_the_smaller_saes_of_a_matryoshka_are_measured_beside_it_as_if_alone():
    config = MatryoshkaSAEConfig(d_in=WIDTH, n_features=32, k=4, prefix_sizes=[8, 32], hook_point=PLACE)
    torch.manual_seed(0)
    sae = SAE.from_config(config)
    metrics = evaluate(sae, baselines=True)
    alone = evaluate(sae.prefix(8))
    part = metrics["parts"]["first 8"]
    assert part["n_features"] == 8 and set(metrics["baselines"]) == {"untrained", "pca"}
    assert {"l0", "explained_variance", "loss_recovered", "dead_fraction"} <= part.keys()
    for name, value in part.items():
        assert name == "n_features" or value == pytest.approx(alone[name]), name
    assert "parts" not in evaluate(make_sae()) and "first 8 features" in report(metrics)


def test_the_model_comes_back_without_hooks_and_in_its_modes():
    model = language_model_of_words()
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    parameters = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_sae(
        make_sae("transformer.h.1.output"), model, text_dataset(100), pythia_like(), disable_tqdm=True, baselines=True
    )
    assert [module.training for module in model.modules()] == modes
    assert count_hooks(model) == 0
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())
    model(torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)).loss.backward()


def test_the_model_comes_back_the_same_after_an_error():
    model = language_model_of_words().train()
    sae = make_sae("transformer.h.1.output")

    def fail(*_, **__):
        raise ZeroDivisionError

    sae.forward = fail
    with pytest.raises(ZeroDivisionError):
        evaluate_sae(sae, model, text_dataset(100), pythia_like(), disable_tqdm=True)
    assert model.training and count_hooks(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluate(make_sae_without_seed(), baselines=True)
    assert torch.equal(torch.rand(3), expected)


def make_sae_without_seed() -> SAE:
    with torch.random.fork_rng():
        return make_sae()


def test_an_sae_that_does_not_fit_the_model_is_refused_before_any_run():
    def explode(*_):
        raise AssertionError("the model was run")

    handle = language_model().transformer.wte.register_forward_hook(explode)
    try:
        with pytest.raises(HookPointError, match="layers, 0 to 2"):
            evaluate(make_sae("transformer.h.7.output"))
        with pytest.raises(ValueError, match="names no hook point"):
            evaluate(make_sae(None))  # type: ignore[arg-type]
        torch.manual_seed(0)
        wide = SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=2, hook_point=PLACE))
        with pytest.raises(ValueError, match="16 dimensions, but this SAE has d_in=8"):
            evaluate(wide)
    finally:
        handle.remove()


def test_nothing_to_measure_gives_nothing():
    assert evaluate_saes({}, language_model(), batches()) == {}


def test_an_sae_in_half_precision_is_measured_in_a_model_in_full_precision():
    sae = make_sae().to(torch.bfloat16)
    metrics = evaluate(sae)
    assert metrics["protocol"]["dtype"] == "float32 (SAE: bfloat16)"
    assert metrics["mse"] == pytest.approx(evaluate(make_sae())["mse"], rel=0.05)


def test_activations_in_the_calibration_are_those_that_capture_reads():
    data = batches(1)
    with torch.no_grad(), capture(language_model(), PLACE) as seen:
        x = seen.run(input_ids=data[0].input_ids, attention_mask=data[0].attention_mask)[PLACE][data[0].keep]
    torch.testing.assert_close(activations_at(PLACE, data), x)
