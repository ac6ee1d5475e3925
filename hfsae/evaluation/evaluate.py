"""Measuring SAEs in a language model: `evaluate_sae`, and `evaluate_saes` for many at any hook points in one go."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import SAEOutput
from hfsae.configuration import SAEConfig
from hfsae.data import TokenBatch
from hfsae.data.left_out import in_words
from hfsae.evaluation.baselines import PCA, untrained
from hfsae.evaluation.calibration import Calibration
from hfsae.evaluation.measure import Measurement, measure
from hfsae.evaluation.metrics import finalise
from hfsae.evaluation.output_places import OutputPlace, with_means
from hfsae.evaluation.predictions import predictions_of
from hfsae.evaluation.preparing import prepare
from hfsae.evaluation.protocol import protocol_of
from hfsae.evaluation.sums import Sums, reduce_sums
from hfsae.evaluation.text_batches import Text, count, tokens_digest
from hfsae.evaluation.together import evaluate_together
from hfsae.functional.precision import own_precision
from hfsae.hooks import HookPoint
from hfsae.hooks.quiet import evaluating
from hfsae.in_model import hook_points_of
from hfsae.processes import all_or_none, process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Rows that the untrained SAE is fitted on and that PCA's size is taken from.
_FIT_ROWS = 8192

_SAE, _UNTRAINED, _PCA = "sae", "untrained", "pca"


def evaluate_sae(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_tokens: int = 200_000,
    batch_size: int = 16,
    calibration: Tensor | Calibration | None = None,
    baselines: bool = False,
    protocol: Mapping[str, Any] | None = None,
    all_processes: bool = False,
    disable_tqdm: bool = False,
) -> dict[str, Any]:
    """Measures one SAE; see `evaluate_saes`, whose arguments these are.

    Args:
        sae: The SAE. Its config says where it reads and which tokens it leaves out.
        model: The language model.
        data: The text.
        tokenizer: Needed for text that is not tokenised yet, and by masked language models.
        max_tokens: Tokens to measure on, at most.
        batch_size: Sequences per run of the model.
        calibration: Activations (N, d) of other text where the SAE writes, or such by hook point.
        baselines: Whether the untrained SAE and PCA are measured too.
        protocol: What only the caller knows of the text: `{"dataset": ..., "split": ...}`.
        all_processes: Whether every process calls this, each with its share of the text.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The metrics, as `evaluate_saes` describes them.

    Raises:
        ValueError, TypeError, HookPointError: As `evaluate_saes`.

    Example:
        >>> metrics = evaluate_sae(sae, model, load_text("held_out.txt"), tokenizer)  # doctest: +SKIP
        >>> metrics["l0"], metrics["explained_variance"], metrics["loss_recovered"]  # doctest: +SKIP
        (32.0, 0.912, 0.981)
    """
    refuse_swapped(sae, model)
    if isinstance(calibration, Tensor):
        calibration = {str(hook_points_of(sae.config, model)[1]): calibration}
    return evaluate_saes(
        {"sae": sae},
        model,
        data,
        tokenizer,
        max_tokens=max_tokens,
        batch_size=batch_size,
        calibration=calibration,
        baselines=baselines,
        protocol=protocol,
        all_processes=all_processes,
        disable_tqdm=disable_tqdm,
    )["sae"]


@own_precision()
def evaluate_saes(
    saes: Mapping[str, SparseAutoencoder],
    model: PreTrainedModel,
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_tokens: int = 200_000,
    batch_size: int = 16,
    calibration: Calibration | None = None,
    baselines: bool = False,
    protocol: Mapping[str, Any] | None = None,
    all_processes: bool = False,
    disable_tqdm: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measures SAEs, at any mix of hook points, on the same text and the same runs of the language model.

    Every sum is pooled over all tokens (`hfsae.evaluation.sums`), every metric has one formula
    (`hfsae.evaluation.metrics`). Tokens that are left out (BOS and other special tokens, padding, excluded positions)
    enter no sum. They keep their own activation in every run, the ablated ones included. The model comes back as it
    was: no hooks, every module in its mode.

    CE is the cross-entropy of what the model predicts (`hfsae.evaluation.predictions`): the next token. Of a masked
    language model it is the tokens that its mask token hides. `protocol["loss"]` says which; a model that predicts no
    tokens gives None, with the reason in `notes`.

    Args:
        saes: The SAEs by name. Their configs say where they read and which tokens they leave out.
        model: The language model, on its device.
        data: Held-out text: `TokenBlocks` or other batches of tokens, whose `keep` says what counts. Or texts (a
            `datasets` dataset or a list of strings), cut into blocks here as the configs say. `TokenBlocks` are left
            where they were found.
        tokenizer: Needed for texts, and by masked language models, which it tells what hides a token.
        max_tokens: Tokens to measure on, at most (and at least one sequence), over all processes.
        batch_size: Sequences per run of the model, where text is cut here.
        calibration: Activations (N, d) of text that is neither trained nor evaluated on, by hook point (where SAEs
            write). Their mean is what `ce_mean` puts in the activations' place, and baselines are fitted on them. None
            takes them from the beginning of the text, which then is not evaluated: 32,768 tokens, at most an eighth.
        baselines: Whether an untrained SAE of the same width and PCA are measured too. They have as many active
            features and components as the SAE has active features. Transcoders have none.
        protocol: What only the caller knows of the text: `{"dataset": ..., "split": ...}`; wins over what is found.
        all_processes: Whether every process of the default `torch.distributed` group calls this, each with its share
            of the text (texts are shared out here). All then get what was measured together.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        For each SAE a dict that JSON can hold. It has every metric of `hfsae.evaluation.metrics` (None where it is
        undefined), `n_tokens` and `density` (a histogram). `notes` say why a metric is None, by name. `baselines` has
        `"untrained"` and `"pca"`, where wanted. `sources` has the figures of each source of a crosscoder, whose means
        its own are. `parts` has them by name, where an SAE holds smaller ones (`SAE.parts`). `protocol` has text,
        counts, ablation, versions and the digest of the weights.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If an SAE does not fit the model, the text, or the calibration; before anything is run.
        TypeError: If `data` is of another type.
    """
    if not saes:
        return {}
    _, sides, batches, known, means = prepare(
        *(saes, model, data, tokenizer),
        max_tokens=max_tokens,
        batch_size=batch_size,
        calibration=calibration,
        all_processes=all_processes,
    )
    processes = process()[1] if all_processes else 1
    with evaluating(model):
        with all_or_none(all_processes):
            made: dict[Hashable, Measurement] = {}
            measurements = {
                (name, side.source or kind): measurement
                for name, sae in saes.items()
                for side in sides[name]
                for kind, measurement in _kinds(sae, side, known[side.target] if baselines else None, made).items()
            }
            predictions = predictions_of(model, batches[0], getattr(tokenizer, "mask_token_id", None))
            # A baseline that several SAEs share is measured under the name of one of them.
            once = {name: one for one, name in {one: name for name, one in measurements.items()}.items()}
            measure(model, once, batches, means, predictions, disable_tqdm=disable_tqdm)

    results = {}
    for name, sae in saes.items():
        sums = {
            kind: reduce_sums(measurement.sums) if all_processes else measurement.sums
            for (owner, kind), measurement in measurements.items()
            if owner == name
        }
        metrics = _figures(sae, sums, baselines, predictions.why)
        about = {
            "n_tokens": metrics["n_tokens"],
            "n_sequences": int(next(iter(sums.values()))["n_sequences"]),
            "context_length": max(batch.input_ids.shape[1] for batch in batches),
            **({"tokens_sha256": tokens_digest(batches)} if processes == 1 else {}),
            "left_out": ", ".join(["padding", *_left_out(sae.config)]),
            "loss": str(predictions),
            "ablation": f"0 (CE zero), or the mean over {len(known[sides[name][0].target]):,} other tokens (CE mean)",
        }
        if sae.config.is_cross_layer:
            metrics["together"] = _together(sae, model, batches, tokenizer, known, all_processes)
        results[name] = metrics | {"protocol": protocol_of(sae, model, about, protocol)}
    return results


def _together(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    batches: Sequence[TokenBatch],
    tokenizer: "PreTrainedTokenizerBase | None",
    known: Mapping[HookPoint, Tensor],
    all_processes: bool,
) -> dict[str, Any]:
    """What the model is worth with all layers of a cross-layer transcoder in place at once: numbers, and the notes."""
    figures = evaluate_together(
        {"": sae},
        model,
        batches,
        tokenizer,
        max_tokens=count(batches) * (process()[1] if all_processes else 1),
        calibration={str(place): rows for place, rows in known.items()},
        all_processes=all_processes,
        disable_tqdm=True,
    )
    return {name: value for name, value in figures.items() if isinstance(value, float | None) or name == "notes"}


def _kinds(
    sae: SparseAutoencoder, side: OutputPlace, calibration: Tensor | None, made: dict[Hashable, Measurement]
) -> dict[str, Measurement]:
    """What is measured of a side: the SAE, the smaller ones it holds, and with calibration its baselines.

    Args:
        sae: The SAE.
        side: The side.
        calibration: Activations that baselines are fitted on; None: without baselines.
        made: Baselines of other SAEs. Alike ones are measured once; new ones are added.
    """
    measured = {kind: side.measurement(sae, part) for kind, part in {_SAE: sae, **sae.parts()}.items()}
    if calibration is None or sae.config.is_transcoder or sae.config.has_sides:
        return measured
    calibration = calibration.to(sae.device)
    fitting = calibration[:_FIT_ROWS]
    with torch.no_grad():
        active = sae.encode_sparse(fitting).tokens_firing().sum() / len(fitting)
    k = max(1, round(active.item()))
    width = (sae.config.n_features, sae.config.input_transform)
    baselines: dict[tuple[Hashable, ...], Callable[[], Callable[[Tensor], SAEOutput]]] = {
        (_UNTRAINED, *width): lambda: untrained(sae, fitting, k),
        (_PCA,): lambda: PCA(calibration, min(k, sae.config.d_in)),
    }
    for of, make in baselines.items():
        key = (*of, k, side.target, sae.device)
        if key not in made:
            made[key] = side.measurement(sae, make())
        measured[str(of[0])] = made[key]
    return measured


def _left_out(config: SAEConfig) -> list[str]:
    return in_words(config.exclude_special_tokens, config.exclude_positions)


def _figures(
    sae: SparseAutoencoder, sums: Mapping[str, Sums], baselines: bool, no_predictions: str | None
) -> dict[str, Any]:
    """The SAE's metrics, with those of its parts and baselines in them: of these, single numbers only."""
    if sae.config.has_sides:
        return _figures_of_sources(sae, sums, baselines, no_predictions)
    metrics: dict[str, Any] = finalise(sums[_SAE], no_predictions) | {"n_tokens": int(sums[_SAE]["n_tokens"])}
    figures: dict[str, dict[str, Any]] = {
        kind: {name: value for name, value in finalise(pooled).items() if isinstance(value, float | None)}
        for kind, pooled in sums.items()
        if kind != _SAE
    }
    against = {kind: figures.pop(kind) for kind in (_UNTRAINED, _PCA) if kind in figures}
    if _PCA in against:
        against[_PCA]["components"] = len(sums[_PCA]["tokens_firing"])
    if figures:
        metrics["parts"] = {
            part: {**values, "n_features": len(sums[part]["tokens_firing"])} for part, values in figures.items()
        }
    if baselines:
        metrics["baselines"] = against
        if sae.config.is_transcoder:
            metrics["notes"]["baselines"] = "a transcoder has none: they reconstruct what they read"
    return metrics


def _figures_of_sources(
    sae: SparseAutoencoder, sums: Mapping[str, Sums], baselines: bool, no_predictions: str | None
) -> dict[str, Any]:
    """The metrics of a crosscoder or of layers, from the sums of each."""
    of_each = {source: finalise(pooled, no_predictions) for source, pooled in sums.items()}
    metrics: dict[str, Any] = with_means(of_each) | {"n_tokens": int(next(iter(sums.values()))["n_tokens"])}
    if sae.config.is_cross_layer:  # a layer has features of its own, though all write to it
        metrics["n_layers"] = len(sums)
        for layer, (source, pooled) in enumerate(sums.items()):
            firing = pooled["tokens_firing"].chunk(sae.n_groups)[layer]
            own = finalise({**pooled, "tokens_firing": firing, "active": firing.sum()}, no_predictions)
            metrics["sources"][source] |= {name: own[name] for name in ("l0", "dead_fraction")}
    if baselines:
        metrics["baselines"] = {}
        metrics["notes"]["baselines"] = "an SAE of several places has none: they reconstruct one place"
    return metrics
