"""`steering_report`: what a feature does to a language model at each of many strengths, and which are of use."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts, logit_effects, steer
from hfsae.analysis.interventions import activation_units
from hfsae.analysis.weights import chosen_features
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.evaluation.text_batches import Text, read_batches
from hfsae.functional.precision import own_precision
from hfsae.hooks import inner_model
from hfsae.hooks.devices import input_device
from hfsae.hooks.limits import refuse_too_long
from hfsae.hooks.quiet import evaluating
from hfsae.steering.text_effect import TextEffect, text_effects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRENGTHS = (-4.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""The grid by default, in multiples of the feature's largest activation."""

# Repetition is that of n-grams of so many tokens.
_N_GRAM = 4


@dataclass(frozen=True)
class UsableLimits:
    """When a strength is of use: it moves the feature's tokens, and leaves the text readable.

    Attributes:
        gain: The feature's tokens are at least so many times as likely as without steering; with a negative strength
            at most one over that.
        perplexity: Perplexity on the text is at most so many times that without steering.
        repetition: The repeated share of continuations is at most so much above that without steering.
    """

    gain: float = 1.5
    perplexity: float = 1.5
    repetition: float = 0.1

    def __str__(self) -> str:
        return (
            f"its tokens at least {self.gain:g} times as likely (a negative strength: at most 1/{self.gain:g}), "
            f"perplexity at most {self.perplexity:g} times, repetition at most {self.repetition:g} higher"
        )


@dataclass(frozen=True)
class StrengthEffect:
    """What one strength does.

    Attributes:
        strength: As it was asked for; 0 is the plain model.
        token_probability: Mean probability on the text that one of the feature's tokens comes next.
        perplexity: On the text.
        kl: KL divergence of the predictions from the plain model's, nats a token.
        repetition: Mean over continuations of 1 − different 4-grams / 4-grams (seq-rep-4; Welleck et al. 2019).
        sample: The first prompt's continuation, as text; None without a tokenizer.
    """

    strength: float
    token_probability: float
    perplexity: float
    kl: float
    repetition: float
    sample: str | None = None


@dataclass(frozen=True)
class SteeringReport:
    """A feature at many strengths.

    Attributes:
        feature: Which one.
        unit: What a strength of 1 is in units of the feature's activation.
        token_ids: The feature's tokens.
        effects: By strength, ascending; one of them is 0.
        limits: What counts as of use.
        n_predictions: Predictions of the text that count.
        n_prompts: Continuations at each strength.
        new_tokens: Tokens of a continuation.
        prompt: What every `sample` continues, as text; None without a tokenizer.
    """

    feature: int
    unit: float
    token_ids: list[int]
    effects: list[StrengthEffect]
    limits: UsableLimits
    n_predictions: int
    n_prompts: int
    new_tokens: int
    prompt: str | None = None

    @property
    def plain(self) -> StrengthEffect:
        """The model without steering."""
        return next(effect for effect in self.effects if effect.strength == 0)

    def is_usable(self, effect: StrengthEffect) -> bool:
        """Whether a strength is within the limits."""
        plain, limits = self.plain, self.limits
        gain = effect.token_probability / plain.token_probability
        return (
            effect.strength != 0
            and (gain >= limits.gain if effect.strength > 0 else gain <= 1 / limits.gain)
            and effect.perplexity <= limits.perplexity * plain.perplexity
            and effect.repetition <= limits.repetition + plain.repetition
        )

    def usable_range(self, *, negative: bool = False) -> tuple[float, float] | None:
        """The usable strengths nearest to 0 that follow one another on the grid: the weakest and the strongest.

        Args:
            negative: Whether strengths below 0 are meant.

        Returns:
            None where no strength is of use.
        """
        side = [one for one in self.effects if (one.strength < 0 if negative else one.strength > 0)]
        found: list[float] = []
        for effect in sorted(side, key=lambda one: abs(one.strength)):
            if self.is_usable(effect):
                found.append(effect.strength)
            elif found:
                break
        return (found[0], found[-1]) if found else None


@torch.no_grad()
@own_precision()
def steering_report(
    model: PreTrainedModel,
    sae: SparseAutoencoder,
    feature: int,
    data: Text,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    strengths: Sequence[float] = STRENGTHS,
    maxima: "FeatureCollection | dict[int, float] | None" = None,
    token_ids: Sequence[int] | None = None,
    limits: UsableLimits = UsableLimits(),
    max_tokens: int = 10_000,
    batch_size: int = 16,
    n_prompts: int = 16,
    prompt_tokens: int = 16,
    new_tokens: int = 40,
    seed: int = 0,
) -> SteeringReport:
    """Steers with one feature at many strengths, and measures each.

    Args:
        model: The causal LM that the SAE reads.
        sae: The SAE.
        feature: Which feature.
        data: Text that was held out, as `hfsae.evaluate_sae` takes it; prompts are the beginnings of its sequences.
        tokenizer: Needed for texts.
        strengths: The grid; 0 is added to it.
        maxima: The feature's largest activation, or a collection that knows it: strengths then are multiples of it.
        token_ids: The feature's tokens; None takes the ten whose logits its direction raises most.
        limits: What counts as of use.
        max_tokens: Tokens of the text.
        batch_size: Sequences a batch.
        n_prompts: Continuations at each strength.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a continuation; they are sampled from the whole distribution, at temperature 1.
        seed: Of the samples, the same at each strength.

    Raises:
        ValueError: For a feature that is not there, strengths that are no finite numbers, or a text too short for a
            prompt. Likewise if prompt and continuation are longer than the model's context. Also for a feature that
            writes nothing into the residual stream where no tokens are given.

    Example:
        >>> report = steering_report(model, sae, 17, texts, tokenizer=tokenizer, maxima=collection)  # doctest: +SKIP
        >>> report.usable_range()  # doctest: +SKIP
        (1.0, 3.0)
    """
    refuse_swapped(sae, model)
    chosen_features(sae, [feature])
    for name, count in (("n_prompts", n_prompts), ("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        if count < 1:
            raise ValueError(f"{name} must be positive, got {count}.")
    refuse_too_long(prompt_tokens, inner_model(model), new_tokens)
    grid = sorted({*map(float, strengths), 0.0})
    if not torch.tensor(grid).isfinite().all():
        raise ValueError(f"strengths are {list(strengths)}: expected finite numbers.")
    unit = activation_units(sae, feature, maxima)
    if token_ids is None:
        token_ids = logit_effects(sae, inner_model(model), [feature]).promoted[0].tolist()
    vocabulary = inner_model(model).config.get_text_config().vocab_size
    if not len(token_ids) or not all(0 <= token < vocabulary for token in token_ids):
        raise ValueError(f"token_ids are {list(token_ids)}: expected ids from 0 to {vocabulary - 1}, at least one.")
    token_ids = list(dict.fromkeys(token_ids))
    told: dict[str, Any] = {"max_tokens": max_tokens, "batch_size": batch_size}
    prompts = _prompts(read_batches(data, tokenizer, model, {"": sae.config}, **told), n_prompts, prompt_tokens)
    prompts = prompts.to(input_device(model))

    def steered(strength: float) -> Any:
        if not strength:
            return nullcontext  # an edit of 0 is no other model, but it rounds otherwise
        return lambda: steer(model, sae, {feature: strength * unit}, tokenizer=tokenizer)

    changes = {strength: steered(strength) for strength in grid}
    on_text = text_effects(model, sae, data, changes, tokenizer=tokenizer, **told)
    if lost := [strength for strength in grid if not math.isfinite(on_text[strength].kl)]:
        raise ValueError(
            f"at a strength of {lost[0]:g} the model's predictions are no finite numbers in {model.dtype}: name "
            "weaker strengths, or load the model in float32."
        )
    found = []
    for strength in grid:
        with changes[strength]():
            continued = _continued(model, prompts, new_tokens, seed)
        found.append(_effect(strength, on_text[strength], token_ids, continued, tokenizer))
    n_predictions = on_text[0.0].n_predictions
    counts = (n_predictions, len(prompts), new_tokens)
    return SteeringReport(feature, unit, token_ids, found, limits, *counts, _text(tokenizer, prompts[0].tolist()))


def repeated_share(tokens: Sequence[int], n: int = _N_GRAM) -> float:
    """The share of a text's n-grams that stood there before: 1 − different n-grams / n-grams.

    Example:
        >>> from hfsae.steering import repeated_share
        >>> repeated_share([1, 2, 1, 2, 1, 2], n=2)
        0.6
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _prompts(batches: Sequence[Any], n_prompts: int, length: int) -> Tensor:
    """(n, length) beginnings of sequences that are long enough."""
    rows = [
        ids[:length]
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        if len(ids) >= length and bool(mask[:length].all())
    ]
    if not rows:
        raise ValueError(f"no sequence of the text has {length} tokens: name fewer for a prompt, or another text.")
    return torch.stack(rows[:n_prompts])


def _continued(model: PreTrainedModel, prompts: Tensor, new_tokens: int, seed: int) -> Tensor:
    """(n, new_tokens) what is sampled after prompts, with random numbers of its own."""
    devices = [prompts.device] if prompts.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), evaluating(model), _whole_distribution(model):
        torch.manual_seed(seed)
        made: Any = model.generate(  # pyright: ignore[reportCallIssue]
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )
    return made[:, prompts.shape[1] :]


@contextmanager
def _whole_distribution(model: PreTrainedModel) -> Iterator[None]:
    """Puts aside what a model's own generation config does to probabilities, such as a penalty of repetition.

    What a call of `generate` leaves open is taken from there, so the call itself cannot leave it out.
    """
    model = inner_model(model)
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=own.eos_token_id)
    try:
        yield
    finally:
        model.generation_config = own


def _effect(
    strength: float,
    effect: TextEffect,
    token_ids: Sequence[int],
    continued: Tensor,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> StrengthEffect:
    rows = continued.tolist()
    return StrengthEffect(
        strength,
        effect.of_tokens(token_ids)[1],
        effect.changed_perplexity,
        effect.kl,
        sum(map(repeated_share, rows)) / len(rows),
        _text(tokenizer, rows[0]),
    )


def _text(tokenizer: "PreTrainedTokenizerBase | None", tokens: list[int]) -> str | None:
    return None if tokenizer is None else "".join(TokenTexts(tokenizer)(tokens))
