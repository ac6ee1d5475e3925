"""The model with all its SAEs in place, against plain hooks that somebody hung on the modules by hand."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, BertModel

from hfsae import SAE, StandardSAEConfig, attach_all, evaluate_together
from hfsae.data import TokenBatch
from hfsae.evaluation import evaluate_sae
from hfsae.evaluation.saved_set import is_stale
from tests.evaluation.tiny import WIDTH, batches, language_model, make_sae, tokens_of
from tests.hooks.witness import count_hooks

LAYERS = range(3)
CALIBRATION = {
    f"mlp_out.{layer}": torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(layer)) + 0.5
    for layer in LAYERS
}


def transcoder(layer: int, *, skip: bool = True) -> SAE:
    """A random one from the MLP's input to its output, its reconstructions of a size that matters."""
    sae = make_sae(
        f"mlp_in.{layer}", target_hook_point=f"mlp_out.{layer}", subtract_b_dec=False, skip=skip, seed=layer
    )
    with torch.no_grad():
        sae.output_scale.fill_(0.4)
        if skip:
            sae.W_skip.normal_(std=0.3, generator=torch.Generator().manual_seed(layer))
    return sae


@pytest.fixture(scope="module")
def saes() -> dict[str, SAE]:
    return {f"mlp_in.{layer}": transcoder(layer) for layer in LAYERS}


def evaluate(saes: dict[str, SAE], data=None, **options) -> dict:
    options = {"calibration": CALIBRATION, "disable_tqdm": True} | options
    return evaluate_together(saes, language_model(), batches() if data is None else data, **options)


@contextmanager
def mlps_return(made: Callable[[int, Tensor, Tensor], Tensor], keep: Tensor) -> Iterator[None]:
    """Every MLP returns something else for the tokens that count."""
    with ExitStack() as stack:
        for layer in LAYERS:

            def changed(_, args, output, layer=layer):
                return torch.where(keep[..., None], made(layer, args[0], output), output)

            stack.callback(language_model().transformer.h[layer].mlp.register_forward_hook(changed).remove)
        yield


def mlp_of(name: str) -> torch.nn.Module:
    return language_model().transformer.h[int(name[-1])].mlp


def counting(sae: SAE, keep: Tensor, active: list[int], _, args) -> None:
    active.append(int((sae.encode(args[0])[keep] != 0).sum()))


@torch.no_grad()
def by_hand(saes: dict[str, SAE], data: list[TokenBatch]) -> dict[str, float]:
    """Summed over sequences that are run one by one."""
    model, means = language_model(), [CALIBRATION[f"mlp_out.{layer}"].mean(0) for layer in LAYERS]
    made: dict[str, Callable] = {
        "spliced": lambda layer, x, _: saes[f"mlp_in.{layer}"](x).reconstruction,
        "zero": lambda layer, x, y: torch.zeros_like(y),
        "mean": lambda layer, x, y: means[layer].expand_as(y),
    }
    nats, divergence, active, predictions = dict.fromkeys(["clean", *made], 0.0), 0.0, [], 0
    for batch in data:
        for ids, mask, keep in zip(*batch, strict=True):
            length = int(mask.sum())
            ids, keep = ids[None, :length], keep[None, :length]
            logits = {"clean": model(ids).logits}
            for run, make in made.items():
                with mlps_return(make, keep):
                    logits[run] = model(ids).logits
            counts = keep[0, :-1]
            logs = {run: values[0, :-1][counts].double().log_softmax(-1) for run, values in logits.items()}
            for run, log in logs.items():
                nats[run] += F.nll_loss(log, ids[0, 1:][counts], reduction="sum").item()
            divergence += F.kl_div(logs["spliced"], logs["clean"], reduction="sum", log_target=True).item()
            predictions += int(counts.sum())
            with mlps_return(made["spliced"], keep), ExitStack() as stack:
                for name, sae in saes.items():
                    stack.callback(mlp_of(name).register_forward_pre_hook(partial(counting, sae, keep, active)).remove)
                model(ids)
    ce = {run: value / predictions for run, value in nats.items()}
    return {
        **{f"ce_{run}": value for run, value in ce.items()},
        "loss_recovered": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"]),
        "loss_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["clean"]),
        "ce_increase": ce["spliced"] - ce["clean"],
        "kl": divergence / predictions,
        "l0": sum(active) / tokens_of(data),
    }


def test_every_figure_is_what_plain_hooks_on_all_mlps_give(saes):
    metrics, expected = evaluate(saes), by_hand(saes, batches())
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert expected["kl"] > 0.5 and abs(expected["ce_increase"]) > 0.05  # a splice that matters
    assert metrics["n_tokens"] == tokens_of(batches()) and metrics["n_saes"] == 3


def test_with_the_errors_of_the_untouched_run_the_model_is_what_it_was(saes):
    metrics = evaluate(saes)
    assert metrics["ce_with_errors"] == pytest.approx(metrics["ce_clean"], abs=1e-5)
    assert abs(metrics["kl_with_errors"]) < 1e-5
    assert 0 < metrics["with_errors_difference"] < 1e-4 and "with_errors_difference" not in metrics["notes"]


def test_a_run_with_errors_that_is_another_one_is_told(saes, monkeypatch):
    calls = []

    def forgetful(self, x, **options):  # its second answer to the same activations is another one
        calls.append(x)
        output = forward(self, x, **options)
        if len(calls) % 2 == 0:
            output.reconstruction = -output.reconstruction
        return output

    forward = SAE.forward
    monkeypatch.setattr(SAE, "forward", forgetful)
    one = {"mlp_in.1": saes["mlp_in.1"]}
    metrics = evaluate(one, batches(1))
    assert "more than the 0.001 that rounding explains" in metrics["notes"]["with_errors_difference"]


def test_one_by_itself_is_measured_as_by_evaluate_sae(saes):
    one = {"mlp_in.1": saes["mlp_in.1"]}
    together = evaluate(one)
    alone = evaluate_sae(one["mlp_in.1"], language_model(), batches(), calibration=CALIBRATION, disable_tqdm=True)
    names = ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "loss_recovered", "kl", "n_tokens")
    assert {name: together[name] for name in names} == pytest.approx({name: alone[name] for name in names}, rel=1e-5)


def test_logits_are_those_of_attach_all(saes):
    data = batches(1)
    ids = data[0].input_ids[:3]  # without padding
    with torch.no_grad(), attach_all(language_model(), saes, splice=True):
        logits = language_model()(ids).logits
    keep = data[0].keep[:3]
    with torch.no_grad(), mlps_return(lambda i, x, _: saes[f"mlp_in.{i}"](x).reconstruction, keep):
        assert torch.equal(language_model()(ids).logits, logits)


def test_other_batches_give_the_same(saes):
    whole = batches(1, rows=12)
    parts = [TokenBatch(*(part[i : i + 1] for part in whole[0])) for i in range(12)]
    first, second = evaluate(saes, whole), evaluate(saes, parts)
    for name in ("ce_spliced", "kl", "loss_recovered", "l0"):
        assert first[name] == pytest.approx(second[name], rel=1e-5)
    assert first["protocol"]["tokens_sha256"] == second["protocol"]["tokens_sha256"]


def test_the_model_comes_back_as_it_was(saes):
    before = count_hooks(language_model())
    evaluate(saes, batches(1))
    assert count_hooks(language_model()) == before


def test_the_protocol_knows_the_weights_of_each(saes):
    protocol = evaluate(saes, batches(1), protocol={"dataset": "theirs"})["protocol"]
    assert protocol["dataset"] == "theirs" and protocol["weights_sha256"].keys() == saes.keys()
    assert len(set(protocol["weights_sha256"].values())) == 3
    assert not is_stale({"protocol": protocol}, saes)
    changed = copy.deepcopy(saes["mlp_in.2"])
    changed.config.k = 1
    assert is_stale({"protocol": protocol}, {"mlp_in.2": changed}) and not is_stale({"protocol": protocol}, {})


def test_two_at_one_place_and_none_at_all_are_refused(saes):
    two = {"one": saes["mlp_in.1"], "other": transcoder(1)}
    with pytest.raises(ValueError, match=r"'one' and 'other' write at transformer\.h\.1\.mlp\.output"):
        evaluate(two)
    with pytest.raises(ValueError, match="there is no SAE to attach"):
        evaluate({})


def test_who_writes_before_it_reads_is_refused():
    backwards = make_sae("mlp_in.2", target_hook_point="mlp_out.1", subtract_b_dec=False)
    with pytest.raises(ValueError, match="'back' writes at .* before the model comes to where it reads"):
        evaluate({"back": backwards}, batches(1))


def test_a_model_that_predicts_nothing_gives_none_and_says_why():
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=48, max_position_embeddings=32, **sizes)).eval()
    config = StandardSAEConfig(d_in=WIDTH, n_features=32, hook_point="resid_post.0")
    metrics = evaluate_together({"sae": SAE.from_config(config)}, model, batches(), disable_tqdm=True)
    assert metrics["ce_spliced"] is None and "no prediction" in metrics["notes"]["ce_spliced"]
