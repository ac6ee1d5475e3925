"""Does a loaded SAE do on this model what its config says? A few texts tell, and trials find out what is wrong."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attach import hook_points_of
from hfsae.configuration import SAEConfig
from hfsae.evaluation.calibration import read_rows
from hfsae.evaluation.measure import evaluating
from hfsae.evaluation.metrics import explained_variance, l0
from hfsae.evaluation.protocol import measured_digest, weights_sha256
from hfsae.evaluation.sums import reconstruction_sums
from hfsae.evaluation.text import Text, count, read_batches, take
from hfsae.hooks import available_hook_points, portable_name, width
from hfsae.modeling import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS = 8192
# Trials look at many places of the model, so they get fewer tokens, and some places at once.
_TRIAL_TOKENS, _PLACES_AT_ONCE = 4096, 8

# A few texts differ from the evaluation's by this much: a share of the recorded L0 (at least one feature), a factor
# of the unexplained variance, and a little for unexplained variance near 0.
_L0_SHARE, _UNEXPLAINED_FACTOR, _UNEXPLAINED_SLACK = 0.25, 1.25, 0.02
_NO_CAUSE = "None of the usual causes explains it; text of another kind than it was trained on may."
# A trial that brings so much of the missing explained variance back has found something; the best are told.
_SHARE_BROUGHT_BACK, _MOST_CAUSES = 0.7, 3
# What must be explained where nothing was recorded.
_LEAST_EXPLAINED = 0.5
# Factors that activations are multiplied by in search of a lost scale.
_FACTORS = tuple(2.0**power for power in range(-8, 9) if power)


@dataclass(frozen=True)
class Figures:
    """What a self-check looks at; None where nothing was recorded."""

    l0: float | None
    explained_variance: float | None

    def __str__(self) -> str:
        shown = (f"{'–' if value is None else format(value, '.4g')}" for value in (self.l0, self.explained_variance))
        return "L0 {}, explained variance {}".format(*shown)

    def fit(self, recorded: "Figures") -> bool:
        """Whether these may be the recorded figures, measured on a few other texts."""
        assert self.l0 is not None and self.explained_variance is not None
        if recorded.l0 is not None and abs(self.l0 - recorded.l0) > max(_L0_SHARE * recorded.l0, 1.0):
            return False
        if recorded.explained_variance is None:
            return self.explained_variance >= _LEAST_EXPLAINED
        allowed = _UNEXPLAINED_FACTOR * (1 - recorded.explained_variance) + _UNEXPLAINED_SLACK
        return 1 - self.explained_variance <= allowed


@dataclass(frozen=True)
class SelfCheck:
    """The outcome of `SAE.self_check`; printed, it says everything in words.

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

    def __str__(self) -> str:
        known = self.recorded.explained_variance is not None
        lines = [f"measured on {self.n_tokens:,} tokens: {self.measured}"]
        lines.append(f"recorded: {self.recorded}" if known else "recorded: nothing to compare with")
        if self.ok:
            return "\n".join([*lines, "This fits."])
        return "\n".join([*lines, "This does not fit."] + [f"- {cause}" for cause in self.causes or (_NO_CAUSE,)])


@torch.no_grad()
def self_check(
    sae: SAE,
    model: PreTrainedModel,
    texts: Text,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_tokens: int = _MAX_TOKENS,
    batch_size: int = 16,
) -> SelfCheck:
    """Compares L0 and explained variance on a few texts with what the config recorded; see `SAE.self_check`.

    Where they do not fit, each usual mistake is undone in turn (another hook point, another handling of BOS and of
    position 0, another scale, activations of processed weights), and those that bring the figures back are named.

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
    source, target = hook_points_of(sae.config, model)
    if isinstance(texts, list) and texts and isinstance(texts[0], str):
        tokenizer = tokenizer or sae.load_tokenizer()
    subject = _Subject(sae, model, texts, tokenizer, max_tokens, batch_size)
    with evaluating(model):
        batches = subject.batches(sae.config)
        rows = read_rows(model, batches, {source, target}, of_first_process=False)
        measured = _figures(sae, rows[source], rows[target])
        metrics = sae.config.metrics or {}
        recorded = Figures(metrics.get("l0"), metrics.get("explained_variance"))
        causes = () if measured.fit(recorded) else tuple(_causes(subject, measured, recorded))
    return SelfCheck(measured, recorded, count(batches), causes)


@dataclass(frozen=True)
class _Subject:
    """What is checked, and on what."""

    sae: SAE
    model: PreTrainedModel
    texts: Any
    tokenizer: Any
    max_tokens: int
    batch_size: int

    def batches(self, config: SAEConfig) -> list[Any]:
        """The text, cut as a config says."""
        return read_batches(
            self.texts,
            self.tokenizer,
            self.model,
            {"sae": config},
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
        )


def _figures(sae: SAE, source: Tensor, target: Tensor, factor: float = 1.0) -> Figures:
    """What an SAE makes of activations that are multiplied by a factor, and divided by it afterwards."""
    device = sae.device
    output = sae((factor * source).to(device))
    assert output.reconstruction is not None and output.features is not None
    target = target.to(device)
    sums = reconstruction_sums(target, output.reconstruction / factor, output.features, target.mean(0))
    return Figures(l0(sums), explained_variance(sums))


def _causes(subject: _Subject, measured: Figures, recorded: Figures) -> Iterator[str]:
    """What brings the figures back, or is known to differ."""
    sae, model = subject.sae, subject.model
    digest, revision = measured_digest(sae.config), getattr(model.config, "_commit_hash", None)
    if digest is not None and digest != weights_sha256(sae):
        yield "The weights are not those that were measured: they were changed, or cast to another dtype, since."
    wanted = sae.config.base_model_revision
    if wanted and revision and revision != wanted:
        yield f"The language model is at commit {revision[:12]}, the SAE was trained on {wanted[:12]}."
    trials = [*_other_tokens(subject), *_other_activations(subject)]
    helping = [trial for trial in trials if _helps(trial[0], measured, recorded)]
    helping.sort(key=lambda trial: -(trial[0].explained_variance or 0.0))
    yield from (f"{cause} ({figures})." for figures, cause in helping[:_MOST_CAUSES])


def _helps(trial: Figures, measured: Figures, recorded: Figures) -> bool:
    assert trial.explained_variance is not None and measured.explained_variance is not None
    gained = trial.explained_variance - measured.explained_variance
    if recorded.explained_variance is None:
        return gained > 0 and trial.fit(recorded)
    missing = recorded.explained_variance - measured.explained_variance
    return gained > 0 and (trial.fit(recorded) or gained >= _SHARE_BROUGHT_BACK * missing)


def _other_tokens(subject: _Subject) -> Iterator[tuple[Figures, str]]:
    """Text that is cut otherwise: with or without BOS, with or without position 0."""
    sae, config = subject.sae, subject.sae.config
    source, target = hook_points_of(config, subject.model)
    if subject.tokenizer is None or isinstance(subject.texts, str):
        return
    changes: list[tuple[dict[str, Any], str]] = []
    if getattr(subject.tokenizer, "bos_token_id", None) is not None:
        for bos in {True, False} - {config.prepend_bos}:
            how = "with" if bos else "without"
            changes.append(
                ({"prepend_bos": bos}, f"Wrong BOS: it fits text {how} BOS; set config.prepend_bos = {bos}")
            )
    if 0 not in config.exclude_positions:
        positions = [0, *config.exclude_positions]
        cause = "Position 0 counts, where language models keep activations of their own kind: it fits without"
        changes.append(({"exclude_positions": positions}, f"{cause}; set config.exclude_positions = {positions}"))
    for fields, cause in changes:
        changed = copy.copy(config)
        for name, value in fields.items():
            setattr(changed, name, value)
        batches = list(take(subject.batches(changed), _TRIAL_TOKENS))
        rows = read_rows(subject.model, batches, {source, target}, of_first_process=False)
        yield _figures(sae, rows[source], rows[target]), cause


def _other_activations(subject: _Subject) -> Iterator[tuple[Figures, str]]:
    """The same text at other places, at other scales, and as other libraries process activations."""
    sae, model = subject.sae, subject.model
    source, _ = hook_points_of(sae.config, model)
    others = [] if sae.config.is_transcoder else _places_as_wide(model, sae.config.d_in, {source})
    batches = list(take(subject.batches(sae.config), _TRIAL_TOKENS))
    for start in range(0, len(others), _PLACES_AT_ONCE):
        rows = read_rows(model, batches, others[start : start + _PLACES_AT_ONCE], of_first_process=False)
        for place, x in rows.items():
            called = portable_name(model, place) or str(place)
            yield _figures(sae, x, x), f"Wrong hook point: it fits {called}; set config.hook_point = {str(place)!r}"
    if sae.config.is_transcoder:
        return
    x = read_rows(model, batches, [source], of_first_process=False)[source]
    scaled = [(factor, _figures(sae, x, x, factor)) for factor in _FACTORS]
    factor, figures = max(scaled, key=lambda pair: pair[1].explained_variance or 0.0)
    yield figures, f"Wrong scale: it fits activations {factor:g} times as large; check input_scale"
    centred = x - x.mean(-1, keepdim=True)
    yield (
        _figures(sae, centred, centred),
        "Processed weights: it fits activations without their mean over dimensions, as centred weights (of "
        "TransformerLens) give; set config.input_transform = 'center'",
    )
    normed = centred / x.std(-1, keepdim=True)
    yield (
        _figures(sae, normed, normed),
        "Processed weights: it fits activations after a layer norm; set config.input_transform = 'layer_norm'",
    )


def _places_as_wide(model: PreTrainedModel, size: int, without: set[Any]) -> list[Any]:
    places = dict.fromkeys(available_hook_points(model).values())
    return [place for place in places if place not in without and width(model, place) == size]
