"""What every evaluation begins with: places in the model, text to measure on, and mean activations of other text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import places_of, refuse_swapped
from hfsae.autoencoder.given import refuse_unnamed
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.data import TokenBatch
from hfsae.evaluation.calibration import Calibration, given_rows, means_of, read_rows
from hfsae.evaluation.output_places import OutputPlace, output_places, widths_of
from hfsae.evaluation.text_batches import Text, count, read_batches, refuse_no_tokens, say_shortfall, split, take
from hfsae.hooks import HookPoint
from hfsae.hooks.quiet import evaluating
from hfsae.processes import all_or_none, process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where the caller brings no activations of other text, this share of the text is kept for that, and not evaluated.
_CALIBRATION_SHARE = 1 / 8
_CALIBRATION_TOKENS = 32_768


class Prepared(NamedTuple):
    """What is measured on.

    Attributes:
        places: Where each SAE that has one place reads and where it writes, by name.
        sides: The reconstructions of each SAE, by name.
        batches: The text, this process's share.
        known: Activations (N, d) of other text, by where SAEs write.
        means: Their means (d,).
    """

    places: dict[str, tuple[HookPoint, HookPoint]]
    sides: dict[str, list[OutputPlace]]
    batches: list[TokenBatch]
    known: dict[HookPoint, Tensor]
    means: dict[HookPoint, Tensor]


def prepare(
    saes: Mapping[str, SparseAutoencoder],
    model: PreTrainedModel,
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None",
    *,
    max_tokens: int,
    batch_size: int,
    calibration: Calibration | None,
    all_processes: bool,
    together: bool = False,
) -> Prepared:
    """Reads the text that SAEs are measured on, and the activations of other text.

    Args:
        saes: The SAEs by name.
        model: The language model.
        data: As `evaluate_saes` takes it, like the others.
        tokenizer: Needed for texts.
        max_tokens: Tokens to measure on, over all processes.
        batch_size: Sequences a batch.
        calibration: Activations of other text; None takes them from the beginning of the text.
        all_processes: Whether every process calls this.
        together: Whether all are to be spliced in at once.

    Raises:
        HookPointError, ValueError, TypeError: As `evaluate_saes`; before anything is run.
    """
    refuse_unnamed(saes)
    refuse_no_tokens(max_tokens)
    for sae in saes.values():
        refuse_swapped(sae, model)
    of_one_place = {name: sae for name, sae in saes.items() if together or not sae.config.has_sides}
    places = places_of(of_one_place, model, splice=together) if of_one_place or together else {}
    sides = {name: output_places(sae, model) for name, sae in saes.items()}
    targets = widths_of(sides)
    known = None if calibration is None else given_rows(calibration, model, targets)
    rank, processes = process() if all_processes else (0, 1)
    tokens = max(1, max_tokens // processes)
    aside = 0 if known is not None else min(_CALIBRATION_TOKENS, max(1, round(tokens * _CALIBRATION_SHARE)))
    with all_or_none(all_processes):
        batches = read_batches(
            data,
            tokenizer,
            model,
            {name: sae.config for name, sae in saes.items()},
            max_tokens=tokens + aside,
            batch_size=batch_size,
            rank=rank,
            world_size=processes,
        )
        other_text, batches = ([], batches) if known is not None else _set_aside(batches, aside, tokens)
    if known is None:
        with evaluating(model):
            known = read_rows(model, other_text, targets, of_first_process=processes > 1)
    if rank == 0:
        say_shortfall(batches, tokens, "evaluation" if processes == 1 else "evaluation by each process")
    return Prepared(places, sides, batches, known, means_of(known))


def _set_aside(batches: list[TokenBatch], aside: int, tokens: int) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """The beginning of the text, for calibration, and `tokens` tokens of what comes after."""
    first, rest = split(batches, min(aside, max(1, round(count(batches) * _CALIBRATION_SHARE))))
    rest = list(take(rest, tokens))
    if not count(rest):
        raise ValueError(
            "the text is too short to keep its beginning for the mean activation: pass more text, or the activations "
            "of other text as calibration."
        )
    return first, rest
