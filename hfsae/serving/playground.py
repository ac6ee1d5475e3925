"""What the page asks a model: the features of a text, and its continuation with some of them turned up or down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts, steer
from hfsae.analysis.plain_values import significant
from hfsae.analysis.prompt_page import read_prompts
from hfsae.hooks.devices import input_device
from hfsae.modeling import SAE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Limits:
    """What one question may ask for.

    Attributes:
        prompt_tokens: Tokens of a text.
        new_tokens: Tokens of a continuation.
        features: Features that are steered at once.
        strength: The largest strength, in multiples of a feature's largest activation.
        seconds: How long a question waits for those before it.
    """

    prompt_tokens: int = 256
    new_tokens: int = 100
    features: int = 12
    strength: float = 20.0
    seconds: float = 30.0


class BusyError(RuntimeError):
    """The model is still at work for others."""


@dataclass
class Playground:
    """A language model with an SAE, for one question at a time.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        collection: Its features, whose maxima are the unit of strengths.
        labels: What features are called.
        name: What the SAE is called.
        limits: What one question may ask for.
    """

    sae: SAE
    model: PreTrainedModel
    tokenizer: "PreTrainedTokenizerBase"
    collection: FeatureCollection
    labels: Mapping[int, str] = field(default_factory=dict)
    name: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        self._lock = Lock()
        self._texts = TokenTexts(self.tokenizer)

    def about(self) -> dict[str, Any]:
        """What the page shows before anything was asked."""
        config = self.sae.config
        limits = {name: getattr(self.limits, name) for name in ("prompt_tokens", "new_tokens", "features", "strength")}
        return {
            "name": self.name,
            "hook_point": config.hook_point,
            "n_features": config.n_features,
            "limits": limits,
            "left_out_note": self.collection.left_out_note,
        }

    def read(self, text: Any) -> dict[str, Any]:
        """The features of a text's tokens, as `read_prompts` has them, and what is known of each feature.

        Raises:
            ValueError: If it is no text, is empty, or has too many tokens.
            BusyError: If the model is still at work.
        """
        self._prompt(text)
        with self._alone():
            (prompt,) = read_prompts(self.sae, self.model, self.tokenizer, [text])
        fired = sorted({feature for features in prompt["features"] for feature in features})
        return {**prompt, "known": {str(feature): self._known(feature) for feature in fired}}

    def generate(self, text: Any, strengths: Any, new_tokens: Any) -> dict[str, Any]:
        """The continuation of a text that the model takes for likeliest, without and with features turned up.

        Args:
            text: The text.
            strengths: Multiples of its largest activation by feature, as JSON has them: the keys are texts.
            new_tokens: Tokens of the continuation.

        Raises:
            ValueError: If one of them is of another kind, or asks for more than the limits.
            BusyError: If the model is still at work.
        """
        chosen = self._strengths(strengths)
        if isinstance(new_tokens, bool) or not isinstance(new_tokens, int):
            raise ValueError("new_tokens is no whole number.")
        if not 1 <= new_tokens <= self.limits.new_tokens:
            raise ValueError(f"new_tokens is {new_tokens}: expected 1 to {self.limits.new_tokens}.")
        inputs = self._prompt(text)
        model: Any = self.model
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": self.tokenizer.eos_token_id or 0}
        with self._alone(), torch.no_grad():
            plain = model.generate(**inputs, **options)
            steered = plain
            if chosen:
                with steer(model, self.sae, chosen, maxima=self.collection, tokenizer=self.tokenizer):
                    steered = model.generate(**inputs, **options)
        start = inputs["input_ids"].shape[1]
        texts = ["".join(self._texts(ids[0, start:].tolist())) for ids in (plain, steered)]
        return {"plain": texts[0], "steered": texts[1]}

    def finish(self) -> None:
        """Waits for the question that is being answered; there is no answer after it.

        A process that ends while torch works in another thread is aborted.
        """
        self._lock.acquire()

    def _prompt(self, text: Any) -> Any:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the text is empty: type something first.")
        # So many letters have more tokens than are allowed, in any tokenizer; making tokens of them would take long.
        if len(text) > 100 * self.limits.prompt_tokens:
            raise ValueError(f"the text is too long: {self.limits.prompt_tokens} tokens are allowed.")
        inputs = self.sae.tokenize(text, self.tokenizer)
        if (length := inputs["input_ids"].shape[1]) > self.limits.prompt_tokens:
            raise ValueError(f"the text has {length} tokens: {self.limits.prompt_tokens} are allowed.")
        return inputs.to(input_device(self.model))

    def _strengths(self, given: Any) -> dict[int, float]:
        limits, n_features = self.limits, self.sae.config.n_features
        if not isinstance(given, dict) or len(given) > limits.features:
            raise ValueError(f"strengths are wrong: expected at most {limits.features} of them, by feature.")
        chosen = {}
        for name, value in given.items():
            if not name.isascii() or not name.isdigit() or len(name) > 12 or int(name) >= n_features:
                raise ValueError(f"there is no feature {name[:20]!r}: expected 0 to {n_features - 1}.")
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"the strength of feature {name} is no number.")
            if abs(value) > limits.strength:
                raise ValueError(
                    f"the strength of feature {name} is {value:g}: at most {limits.strength:g} is allowed."
                )
            if value:
                chosen[int(name)] = float(value)
        return chosen

    def _known(self, feature: int) -> dict[str, Any]:
        try:
            known = self.collection.of(feature)
        except KeyError:
            return {"label": self.labels.get(feature, ""), "maximum": None, "promoted": []}
        promoted = [self._texts([effect.token_id])[0] for effect in known.promoted[:5]]
        return {"label": self.labels.get(feature, ""), "maximum": significant(known.maximum), "promoted": promoted}

    def _alone(self) -> "_Turn":
        return _Turn(self._lock, self.limits.seconds)


class _Turn:
    """The model for one question; those behind it wait, but not for ever."""

    def __init__(self, lock: Lock, seconds: float):
        self._lock, self._seconds = lock, seconds

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self._seconds):
            raise BusyError("the model is still at work for another question: try again.")

    def __exit__(self, *_: object) -> None:
        self._lock.release()
