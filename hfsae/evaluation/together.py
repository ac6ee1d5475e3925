"""What a model is worth in which many SAEs have taken their places at once: `evaluate_together`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import standing
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.data import TokenBatch
from hfsae.data.left_out import in_words
from hfsae.evaluation.calibration import Calibration
from hfsae.evaluation.intervals import told_apart
from hfsae.evaluation.losses import prediction_losses
from hfsae.evaluation.metrics import finalise
from hfsae.evaluation.predictions import Predictions, predictions_of
from hfsae.evaluation.preparing import Prepared, prepare
from hfsae.evaluation.protocol import versions
from hfsae.evaluation.spliced_model import SplicedModel, model_inputs
from hfsae.evaluation.sums import Sums, add, reduce_sums
from hfsae.evaluation.text_batches import Text, counted, rows, tokens_digest
from hfsae.functional.precision import own_precision
from hfsae.hooks import HookPoint, HookPointError
from hfsae.hooks.access import visiting
from hfsae.hooks.quiet import evaluating
from hfsae.hooks.sites import Sites
from hfsae.hooks.splice import splicing
from hfsae.hooks.tokens import of_tokens
from hfsae.identity import settings_of, weights_sha256
from hfsae.in_model import SAEHookPoints
from hfsae.processes import all_or_none, process
from hfsae.progress import token_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the model may differ with all errors added back, as a share of its last state: rounding through all its layers.
_LEAST_TOLERANCE = 1e-3
_EPSILONS = 16

_CLEAN, _SPLICED, _WITH_ERRORS, _ZERO, _MEAN = "clean", "spliced", "with_errors", "zero", "mean"

Rewrite = Callable[[str, Tensor], Tensor]
"""From an SAE's name and the rows (N, d_in) that it reads to the rows (N, d_out) that it writes."""


@torch.no_grad()
@own_precision()
def evaluate_together(
    saes: Mapping[str, SparseAutoencoder],
    model: PreTrainedModel,
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_tokens: int = 200_000,
    batch_size: int = 16,
    calibration: Calibration | None = None,
    protocol: Mapping[str, Any] | None = None,
    all_processes: bool = False,
    disable_tqdm: bool = False,
) -> dict[str, Any]:
    """Measures a language model in which every SAE stands in its place at once.

    Five runs of the model over the text:

    * untouched
    * with every reconstruction spliced in, each made of what the ones before it left
    * the same with the errors of the untouched run added back, which must give the untouched model again
    * with 0 in all those places
    * with the mean of other text in all of them

    Tokens that are left out keep their own activations, as in `evaluate_saes`.

    Args:
        saes: The SAEs by name, no two of which write at one place. A cross-layer transcoder stands at all its layers.
        model: The language model, on its device.
        data: As `evaluate_saes` takes it, like the others.
        tokenizer: Needed for texts, and by masked language models.
        max_tokens: Tokens to measure on, at most.
        batch_size: Sequences per run of the model, where text is cut here.
        calibration: Activations (N, d) of other text by hook point where SAEs write.
        protocol: What only the caller knows of the text.
        all_processes: Whether every process calls this, each with its share of the text.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        A dict that JSON can hold. With all reconstructions in place: `ce_clean`, `ce_spliced`, `ce_zero`, `ce_mean`,
        `loss_recovered`, `loss_recovered_mean`, `ce_increase` and `kl`. With the errors added back: `ce_with_errors`,
        `kl_with_errors` and `with_errors_difference`. The last says how far the last state is from the untouched
        model's, as a share of its norm. `l0` is the number of active features a token over all SAEs in the spliced
        model. There are also `n_tokens`, `notes` and `protocol`, whose `weights_sha256` has a digest for every SAE. A
        model that predicts no tokens gives None, with the reason in `notes`.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If an SAE does not fit the model, the text or the calibration, or two write at one place; before
            anything is run.
        TypeError: If `data` is of another type.

    Example:
        >>> saes = load_saes("runs/transcoder_set")  # doctest: +SKIP
        >>> evaluate_together(saes, model, text, tokenizer)["ce_increase"]  # doctest: +SKIP
        0.41
    """
    given, saes = saes, standing(saes)
    prepared = prepare(
        *(saes, model, data, tokenizer),
        max_tokens=max_tokens,
        batch_size=batch_size,
        calibration=calibration,
        all_processes=all_processes,
        together=True,
    )
    processes = process()[1] if all_processes else 1
    sums: Sums = {}
    with evaluating(model), all_or_none(all_processes):
        predictions = predictions_of(model, prepared.batches[0], getattr(tokenizer, "mask_token_id", None))
        if predictions.of is not None:
            sums = _measure(saes, model, prepared, predictions, disable_tqdm)
    sums = reduce_sums(sums) if all_processes and sums else sums
    batches = prepared.batches
    about = {
        "n_tokens": int(sums["n_tokens"]) if sums else 0,
        "context_length": max(batch.input_ids.shape[1] for batch in batches),
        **({"tokens_sha256": tokens_digest(batches)} if processes == 1 else {}),
        "left_out": ", ".join(dict.fromkeys(["padding", *_left_out(saes)])),
        "loss": str(predictions),
        "ablation": "0 (CE zero), or the means over other tokens (CE mean), in all places at once",
        "dtype": str(model.dtype).removeprefix("torch."),
        **versions(),
        "weights_sha256": {name: weights_sha256(sae) for name, sae in given.items()},
        "settings": {name: settings_of(sae.config) for name, sae in given.items()},
    }
    figures = _figures(sums, model, predictions.why)
    return figures | {"n_saes": len(given), "protocol": {"dataset": None, "split": None, **about, **(protocol or {})}}


def _left_out(saes: Mapping[str, SparseAutoencoder]) -> list[str]:
    return [
        word
        for sae in saes.values()
        for word in in_words(sae.config.exclude_special_tokens, sae.config.exclude_positions)
    ]


def _measure(
    saes: Mapping[str, SparseAutoencoder],
    model: PreTrainedModel,
    prepared: Prepared,
    predictions: Predictions,
    disable_tqdm: bool,
) -> Sums:
    places, batches = prepared.places, prepared.batches
    sources, targets = ([pair[side] for pair in places.values()] for side in (0, 1))
    spliced = SplicedModel(model, sources, targets, model_inputs(model, batches[0]))
    replaced = Replaced(model, places)
    sums: Sums = {}
    total = sum(int(batch.keep.sum()) for batch in batches)
    with token_bar("evaluating all at once", total, disable=disable_tqdm) as bar:
        for batch in batches:
            step = spliced.sequences_at_once(batch.input_ids.shape[1], 5) or len(batch.input_ids)
            for start in range(0, len(batch.input_ids), step):
                piece = rows(batch, slice(start, start + step))
                sums = add(sums, _sums_of(saes, spliced, replaced, piece, prepared.means, predictions))
                bar.update(int(piece.keep.sum()))
    return sums


def _sums_of(
    saes: Mapping[str, SparseAutoencoder],
    spliced: SplicedModel,
    replaced: "Replaced",
    batch: TokenBatch,
    means: Mapping[HookPoint, Tensor],
    predictions: Predictions,
) -> Sums:
    """The sums of one batch: that of every run's losses, and how far the run with errors is from the untouched one."""
    asked, positions, answers = predictions.question(batch)
    inputs, keep = replaced.inputs(asked), batch.keep
    activations, clean = spliced.read(inputs)
    errors, active = {}, torch.zeros((), dtype=torch.float64)

    def reconstructed(name: str, x: Tensor) -> Tensor:
        nonlocal active
        output = saes[name](x.to(saes[name].device))
        assert output.reconstruction is not None and output.features is not None
        active = active + output.features.tokens_firing().double().sum().cpu()
        return output.reconstruction

    for name, (source, target) in replaced.places.items():
        x, y = (counted(activations[place], batch, place) for place in (source, target))
        errors[name] = y.float() - reconstructed(name, x).to(y.device, torch.float32)

    def with_errors(name: str, x: Tensor) -> Tensor:
        return reconstructed(name, x).to(x.device, torch.float32) + errors[name].to(x.device)

    def constant(value_at: Callable[[HookPoint], Tensor]) -> Rewrite:
        return lambda name, x: value_at(replaced.places[name][1]).to(x.device).expand(len(x), -1)

    rewrites: dict[str, Rewrite] = {
        _WITH_ERRORS: with_errors,
        _ZERO: constant(lambda place: torch.zeros_like(means[place])),
        _MEAN: constant(means.__getitem__),
        _SPLICED: reconstructed,
    }
    finals = {_CLEAN: clean}
    for run, rewrite in rewrites.items():
        active = torch.zeros_like(active)  # in the end that of the last: the spliced model
        with replaced.by(rewrite, batch):
            finals[run] = spliced.run(inputs)
    chosen = {
        run: of_tokens(final, batch.input_ids.shape, "the last state").flatten(0, 1)[positions.to(final.device)]
        for run, final in finals.items()
    }
    nats, divergences = prediction_losses(
        chosen, answers, spliced.logits, spliced.vocabulary, clean=_CLEAN, diverging=[_SPLICED, _WITH_ERRORS]
    )
    difference, size = chosen[_WITH_ERRORS].double() - chosen[_CLEAN].double(), chosen[_CLEAN].double()
    return {
        "n_tokens": keep.sum().double().cpu(),
        "active": active,
        "n_predictions": torch.tensor(len(answers), dtype=torch.float64),
        **{f"{run}_nats": value.cpu() for run, value in nats.items()},
        "kl_nats": divergences[_SPLICED].cpu(),
        "with_errors_kl_nats": divergences[_WITH_ERRORS].cpu(),
        "with_errors_squared": difference.square().sum().cpu(),
        "final_squared": size.square().sum().cpu(),
    }


def are_set(hook_points: Iterable[SAEHookPoints]) -> bool:
    """Whether SAEs are a set: several transcoders, each of which writes at a place of its own."""
    targets = [points.writes for points in hook_points]
    return len(targets) > 1 and None not in targets and len(set(targets)) == len(targets)


class Replaced:
    """A model whose activations at several places are rewritten on the way, each from what is read there and then.

    Args:
        model: The language model.
        places: Where each SAE reads and where it writes, by name.
    """

    def __init__(self, model: PreTrainedModel, places: dict[str, tuple[HookPoint, HookPoint]]):
        self.places = places
        self._model = model
        self._sites = Sites.at(model, [place for pair in places.values() for place in pair])

    def inputs(self, batch: TokenBatch) -> dict[str, Tensor]:
        return model_inputs(self._model, batch)

    @contextmanager
    def by(self, rewrite: Rewrite, batch: TokenBatch) -> Iterator[None]:
        """Inside, tokens that count are given what `rewrite` makes; the others keep their own."""
        read: dict[str, Tensor] = {}

        def reader(name: str, place: HookPoint) -> Callable[[Tensor], None]:
            def note(x: Tensor) -> None:
                read[name] = counted(x, batch, place)

            return note

        def writer(name: str, place: HookPoint) -> Callable[[Tensor], Tensor]:
            def replace(y: Tensor) -> Tensor:
                changed = y.clone()
                if name not in read:
                    raise HookPointError(f"SAE {name!r} writes at {place} before the model comes to where it reads.")
                kept = batch.keep.to(y.device)
                of_tokens(changed, batch.input_ids.shape, place)[kept] = rewrite(name, read.pop(name)).to(changed)
                return changed

            return replace

        with ExitStack() as stack:
            passes = stack.enter_context(self._sites.passes())
            for name, (source, target) in self.places.items():
                stack.enter_context(visiting(self._sites[source], reader(name, source), passes))
                stack.enter_context(splicing(self._sites[target], writer(name, target), passes))
            yield


def _figures(sums: Sums, model: PreTrainedModel, no_predictions: str | None) -> dict[str, Any]:
    if not sums:
        return finalise({}, no_predictions)
    metrics = finalise(sums)
    notes = metrics.pop("notes")
    predictions = sums["n_predictions"]
    metrics["ce_with_errors"] = (sums["with_errors_nats"] / predictions).item()
    metrics["kl_with_errors"] = (sums["with_errors_kl_nats"] / predictions).item()
    difference = (sums["with_errors_squared"] / sums["final_squared"]).sqrt().item()
    metrics["with_errors_difference"] = difference
    if difference > (tolerance := max(_LEAST_TOLERANCE, _EPSILONS * torch.finfo(model.dtype).eps)):
        most = f"{tolerance:.2g}"
        away = told_apart(difference, f"{difference:.2g}", [float(most)])
        notes["with_errors_difference"] = (
            f"with all errors added back the last state is {away} of its norm away from the model's own, "
            f"more than the {most} that rounding explains: the places are not all that lies between"
        )
    return metrics | {"n_tokens": int(sums["n_tokens"]), "notes": notes}
