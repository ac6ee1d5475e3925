"""Does a loaded SAE do on this model what its config says? A few texts tell, and trials find out what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.evaluation.calibration import read_rows
from hfsae.evaluation.diagnosis import CheckSetup, Figures, undone_mistakes
from hfsae.evaluation.output_places import output_places
from hfsae.evaluation.protocol import changed_settings, measured_digest
from hfsae.evaluation.text_batches import Text, count
from hfsae.functional.precision import own_precision
from hfsae.hooks.quiet import evaluating
from hfsae.identity import weights_sha256
from hfsae.language_model import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS = 8192
_NO_CAUSE = "None of the usual causes explains it; text of another kind than it was trained on may."
# A trial that brings so much of the missing explained variance back has found something, or less where it then fits;
# the best are told.
_SHARE_BROUGHT_BACK, _SHARE_IF_IT_FITS, _MOST_CAUSES = 0.7, 0.5, 3


@dataclass(frozen=True)
class SelfCheck:
    """The outcome of `self_check`; printed, it says everything in words.

    Args:
        measured: The figures on the texts that were given.
        recorded: Those in the SAE's config.
        n_tokens: Tokens that were measured on.
        causes: What may be wrong, the likeliest first; empty if all is well, or nothing that was tried helps.
    """

    measured: Figures
    recorded: Figures
    n_tokens: int
    causes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the SAE does here what its config says."""
        return self.measured.fit(self.recorded)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        known = self.recorded.explained_variance is not None
        lines = [f"measured on {self.n_tokens:,} tokens: {self.measured}"]
        lines.append(f"recorded: {self.recorded}" if known else "recorded: nothing to compare with")
        if self.ok:
            return "\n".join([*lines, "This fits."])
        return "\n".join([*lines, "This does not fit."] + [f"- {cause}" for cause in self.causes or (_NO_CAUSE,)])


@torch.no_grad()
@own_precision()
def self_check(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    texts: Text,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_tokens: int = _MAX_TOKENS,
    batch_size: int = 16,
) -> SelfCheck:
    """Compares L0 and explained variance on a few texts with what the config recorded; see `self_check`.

    Where they do not fit, each usual mistake is undone in turn. The mistakes are another hook point, another handling
    of BOS and of position 0, another scale, and activations of processed weights. The result names the mistakes whose
    undoing brings the figures back. Of a crosscoder or a cross-layer transcoder, whose figures are means over all
    places, no mistake is undone.

    Args:
        sae: The SAE.
        model: The language model.
        texts: A list of strings, a `datasets` dataset, or batches of tokens.
        tokenizer: For texts; None loads the one of the SAE's language model.
        max_tokens: Tokens to measure on, at most.
        batch_size: Sequences per run of the model.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If the SAE does not fit the model in size, or there is no token that counts.
        TypeError: If `texts` is of another type.
    """
    refuse_swapped(sae, model)
    sides = output_places(sae, model)
    places = {place for side in sides for place in (*side.reads, side.target)}
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        tokenizer = tokenizer or load_tokenizer(sae.config)
    setup = CheckSetup(sae, model, texts, tokenizer, max_tokens, batch_size)
    with evaluating(model):
        batches = setup.batches(sae.config)
        rows = read_rows(model, batches, places, of_first_process=False)
        measured = setup.figures_of_sides(sides, rows)
        metrics = sae.config.metrics or {}
        recorded = Figures(metrics.get("l0"), metrics.get("explained_variance"))
        causes = () if measured.fit(recorded) else tuple(_causes(setup, measured, recorded))
    return SelfCheck(measured, recorded, count(batches), causes)


def _causes(setup: CheckSetup, measured: Figures, recorded: Figures) -> Iterator[str]:
    """What brings the figures back, or is known to differ."""
    sae, model = setup.sae, setup.model
    digest, revision = measured_digest(sae.config), getattr(model.config, "_commit_hash", None)
    if digest is not None and digest != weights_sha256(sae):
        yield "The weights are not the measured ones: they were changed, or cast to another dtype, since."
    if changed := changed_settings(sae.config):
        yield f"The settings are not the measured ones: {', '.join(changed)} changed since."
    wanted = sae.config.base_model_revision
    if wanted and revision and revision != wanted:
        yield f"The language model is at commit {revision[:12]}, the SAE was trained on {wanted[:12]}."
    if sae.config.has_sides:
        return  # trials are of one place
    helping = [trial for trial in undone_mistakes(setup) if _helps(trial.figures, measured, recorded)]
    # Where two do as well, up to rounding, what undoes less comes first: `undone_mistakes` gives it first.
    helping.sort(key=lambda trial: -round(trial.figures.explained_variance or 0.0, 3))
    yield from (f"{trial.cause} ({trial.figures})." for trial in helping[:_MOST_CAUSES])


def _helps(trial: Figures, measured: Figures, recorded: Figures) -> bool:
    """Whether it brings back what is missing; a little more than measured may fit by chance, and says nothing."""
    if recorded.explained_variance is None or measured.fit(Figures(None, recorded.explained_variance)):
        return trial.fit(recorded)  # nothing to bring back: there is no figure, or only L0 is off
    assert trial.explained_variance is not None and measured.explained_variance is not None
    missing = recorded.explained_variance - measured.explained_variance
    share = _SHARE_IF_IT_FITS if trial.fit(recorded) else _SHARE_BROUGHT_BACK
    return trial.explained_variance - measured.explained_variance >= share * missing
