"""An evaluation tried out before the SAEs that it is for are trained: what would fail then fails now."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import SAEOutput
from hfsae.data import TokenBatch
from hfsae.evaluation.calibration import Calibration, given_rows, means_of, read_rows
from hfsae.evaluation.measure import measure
from hfsae.evaluation.metrics import finalise
from hfsae.evaluation.output_places import output_places, widths_of
from hfsae.evaluation.predictions import predictions_of
from hfsae.evaluation.text_batches import read_batches
from hfsae.hooks.quiet import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# An untrained SAE may have half of its features active, so it gets no more rows than tell whether it fits.
_ROWS = 32


@torch.no_grad()
def rehearse(
    saes: Mapping[str, SparseAutoencoder],
    model: PreTrainedModel,
    batch: TokenBatch,
    other_text: TokenBatch | Calibration,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> None:
    """Does on one batch what `evaluate_saes` will do on many, baselines aside; model and SAEs stay as they are.

    Args:
        saes: The SAEs by name, trained or not.
        model: The language model, on its device.
        batch: The first batch of the text that will be measured on.
        other_text: A batch of text that is not evaluated, or activations of it by hook point.
        tokenizer: As for `evaluate_saes`.

    Raises:
        HookPointError, ValueError, TypeError: As `evaluate_saes`; and whatever the model raises.
    """
    sides = {name: output_places(sae, model) for name, sae in saes.items()}
    targets = widths_of(sides)
    configs = {name: sae.config for name, sae in saes.items()}

    def checked(one: TokenBatch) -> Sequence[TokenBatch]:
        tokens = max(1, int(one.keep.sum()))
        return read_batches([one], None, model, configs, max_tokens=tokens, batch_size=len(one.keep))

    batches = checked(batch)
    with evaluating(model):
        if isinstance(other_text, TokenBatch):
            known = read_rows(model, checked(other_text), targets, of_first_process=False)
        else:
            known = given_rows(other_text, model, targets)
        means = means_of(known)
        measurements = {
            (name, side.source or "sae"): side.measurement(sae, _first_rows(sae))
            for name, sae in saes.items()
            for side in sides[name]
        }
        predictions = predictions_of(model, batches[0], getattr(tokenizer, "mask_token_id", None))
        measure(model, measurements, batches, means, predictions, disable_tqdm=True)
    for measurement in measurements.values():
        finalise(measurement.sums, predictions.why)


def _first_rows(sae: SparseAutoencoder) -> Callable[[Tensor], SAEOutput]:
    """An SAE that makes something of the first rows only, and 0 of the others."""

    def reconstruct(activations: Tensor) -> SAEOutput:
        with evaluating(sae):
            output = sae(activations[:_ROWS])
        reconstruction = activations.new_zeros(len(activations), sae.config.d_out)
        reconstruction[:_ROWS] = output.reconstruction
        return SAEOutput(reconstruction=reconstruction, features=output.features)  # type: ignore[arg-type]

    return reconstruct
