"""What the page asks a model: a text's features, its continuation with some of them turned up or down, its graph."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts, steer
from hfsae.analysis.plain_values import significant
from hfsae.analysis.prompt_page import read_prompts
from hfsae.attachment import refuse_swapped
from hfsae.circuits import trace
from hfsae.circuits.replacement import is_copied
from hfsae.circuits.tracing import why_untraceable
from hfsae.hooks import SideBySide, inner_model
from hfsae.hooks.devices import input_device
from hfsae.hooks.limits import refuse_too_long
from hfsae.host_memory import give_freed_memory_back
from hfsae.in_model import hook_points_of
from hfsae.modeling import SAE
from hfsae.serving.questions import Questions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one question may ask for.

    Attributes:
        prompt_tokens: Tokens of a text.
        new_tokens: Tokens of a continuation.
        features: Features that are steered at once.
        strength: The largest strength, in multiples of a feature's largest activation.
        traced_tokens: Tokens of a text whose graph is made.
        traced_features: Features in a graph.
        graphs: Graphs that are kept; an older one is forgotten.
        seconds: How long a question waits for those before it.

    Raises:
        ValueError: If one of them is less than 1.
    """

    prompt_tokens: int = 256
    new_tokens: int = 100
    features: int = 12
    strength: float = 20.0
    traced_tokens: int = 64
    traced_features: int = 500
    graphs: int = 20
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "features", "traced_tokens", "traced_features", "graphs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more.")


@dataclass(frozen=True)
class ServedSAE:
    """An SAE, and what is known of its features.

    Attributes:
        sae: The SAE.
        collection: Its features, whose maxima are the unit of strengths.
        labels: What features are called.
    """

    sae: SAE
    collection: FeatureCollection
    labels: Mapping[int, str] = field(default_factory=dict)


def _question(
    answer: "Callable[Concatenate[Playground, P], T]",
) -> "Callable[Concatenate[Playground, P], T]":
    """A method that `finish` waits for."""

    @wraps(answer)
    def answered(playground: "Playground", *args: P.args, **kwargs: P.kwargs) -> T:
        with playground._questions.asked():
            return answer(playground, *args, **kwargs)

    return answered


@dataclass
class Playground:
    """A language model with SAEs, for one question at a time.

    Args:
        saes: The SAEs by name: one, or a set such as transcoders of all MLPs.
        model: Their language model.
        tokenizer: Its tokenizer.
        name: What all of it is called.
        limits: What one question may ask for.

    Raises:
        ValueError: If there is no SAE.
    """

    saes: Mapping[str, ServedSAE]
    model: PreTrainedModel
    tokenizer: "PreTrainedTokenizerBase"
    name: str = ""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.saes:
            raise ValueError("there is no SAE to serve.")
        for name, one in self.saes.items():
            if not isinstance(one, ServedSAE):
                raise TypeError(f"{name!r} is a {type(one).__name__}: expected a ServedSAE(sae, collection).")
            refuse_swapped(one.sae, self.model)
        self._questions = Questions(self.limits.seconds)
        self._texts = TokenTexts(self.tokenizer)
        self._graphs: dict[int, bytes] = {}
        self._n_graphs = 0

    @cached_property
    def no_trace(self) -> str | None:
        """Why these SAEs and this model give no graph; None where they do. A model in half precision is copied."""
        return why_untraceable(self.model, {name: one.sae for name, one in self.saes.items()}, self.tokenizer)

    @cached_property
    def no_steering(self) -> dict[str, str | None]:
        """Why the features of an SAE cannot be turned up in this model, by the SAE's name; None where they can."""
        return {name: self._why_not_steered(served.sae) for name, served in self.saes.items()}

    def _why_not_steered(self, sae: SAE) -> str | None:
        if isinstance(self.model, SideBySide):
            return "models that stand side by side continue no text: serve an SAE of one of them."
        try:
            hook_points_of(sae.config, inner_model(self.model))
        except ValueError as error:
            return str(error)
        return None

    def about(self) -> dict[str, Any]:
        """What the page shows before anything was asked."""
        told = ("prompt_tokens", "new_tokens", "features", "strength", "traced_tokens", "traced_features", "graphs")
        saes = [
            {
                "name": name,
                "hook_point": served.sae.config.hook_point,
                "n_features": served.sae.config.n_features,
                "left_out_note": served.collection.left_out_note,
                "no_steering": self.no_steering[name],
            }
            for name, served in self.saes.items()
        ]
        limits = {name: getattr(self.limits, name) for name in told}
        # Who never traces needs no copy: of a model in half precision the first trace finds out.
        no_trace = None if is_copied(self.model) else self.no_trace
        return {"name": self.name, "saes": saes, "limits": limits, "no_trace": no_trace}

    @_question
    def read(self, text: Any, sae: Any = None) -> dict[str, Any]:
        """The features of a text's tokens, as `read_prompts` has them, and what is known of each feature.

        Args:
            text: The text.
            sae: The SAE's name; None for the first.

        Raises:
            ValueError: If it is no text, is empty, or has too many tokens, or if there is no such SAE.
            BusyError: If the model is still at work.
        """
        name = self._named(next(iter(self.saes)) if sae is None else sae)
        served = self.saes[name]
        self._prompt(text, self.limits.prompt_tokens)
        with self._questions.turn():
            (prompt,) = read_prompts(served.sae, self.model, self.tokenizer, [text])
        fired = sorted({feature for features in prompt["features"] for feature in features})
        return {**prompt, "sae": name, "known": {str(feature): self._known(served, feature) for feature in fired}}

    @_question
    def generate(self, text: Any, strengths: Any, new_tokens: Any) -> dict[str, Any]:
        """The continuation of a text that the model takes for likeliest, without and with features turned up.

        Args:
            text: The text.
            strengths: By SAE, multiples of its largest activation by feature, as JSON has them: all keys are texts.
            new_tokens: Tokens of the continuation.

        Raises:
            ValueError: If one of them is of another kind, or asks for more than the limits, or if features of an SAE
                cannot be turned up.
            BusyError: If the model is still at work.
        """
        chosen = self._strengths(strengths)
        for name in self.saes if isinstance(self.model, SideBySide) else chosen:
            if (why := self.no_steering[name]) is not None:
                raise ValueError(why)
        if isinstance(new_tokens, bool) or not isinstance(new_tokens, int):
            raise ValueError("new_tokens is no whole number.")
        if not 1 <= new_tokens <= self.limits.new_tokens:
            raise ValueError(f"new_tokens is {new_tokens}: expected 1 to {self.limits.new_tokens}.")
        inputs = self._prompt(text, self.limits.prompt_tokens, new_tokens)
        model: Any = self.model
        options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": self.tokenizer.eos_token_id or 0}
        with self._questions.turn(), torch.no_grad():
            plain = model.generate(**inputs, **options)
            steered = plain
            if chosen:
                with ExitStack() as stack:
                    for name, values in chosen.items():
                        sae, maxima = self.saes[name].sae, self.saes[name].collection
                        stack.enter_context(steer(model, sae, values, maxima=maxima, tokenizer=self.tokenizer))
                    steered = model.generate(**inputs, **options)
        give_freed_memory_back()
        start = inputs["input_ids"].shape[1]
        texts = ["".join(self._texts(ids[0, start:].tolist())) for ids in (plain, steered)]
        return {"plain": texts[0], "steered": texts[1]}

    @_question
    def trace(self, text: Any) -> dict[str, Any]:
        """The attribution graph of a text, kept as a page that `graph` gives.

        Args:
            text: The text.

        Returns:
            The page's number (`graph`), and what the model says next with probabilities (`says`). Then how many
            features the graph has (`features`), how many fire (`active`), its scores, and its notes.

        Raises:
            ValueError: If it is no text, has too many tokens or too few, or if there can be no graph.
            BusyError: If the model is still at work.
        """
        self._prompt(text, self.limits.traced_tokens)
        with self._questions.turn():
            if self.no_trace is not None:
                raise ValueError(self.no_trace)
            graph = trace(
                self.model,
                {name: served.sae for name, served in self.saes.items()},
                text,
                tokenizer=self.tokenizer,
                max_features=self.limits.traced_features,
                disable_tqdm=True,
            )
            with TemporaryDirectory() as folder:
                page = graph.write_page(
                    Path(folder) / "graph.html",
                    collections={name: served.collection for name, served in self.saes.items()},
                    labels={name: served.labels for name, served in self.saes.items()},
                    tokenizer=self.tokenizer,
                )
                number = self._keep(page.read_bytes())
        logits = [node for node in graph.nodes if node.kind == "logit"]
        return {
            "graph": number,
            "says": [{"token": node.label, "probability": significant(node.probability)} for node in logits],
            "features": int(graph.is_kind("feature").sum()),
            "active": graph.n_active,
            "replacement": significant(graph.replacement_score),
            "completeness": significant(graph.completeness_score),
            "notes": graph.notes,
        }

    def graph(self, number: int) -> bytes | None:
        """The page of a graph that `trace` made; None if there was none of this number, or it is forgotten."""
        return self._graphs.get(number)

    def _keep(self, page: bytes) -> int:
        """Keeps a page in memory, as a killed process would leave it on a disk."""
        self._n_graphs += 1
        self._graphs[self._n_graphs] = page
        self._graphs.pop(self._n_graphs - self.limits.graphs, None)
        return self._n_graphs

    def finish(self) -> None:
        """Waits for the questions that are being answered; there is no answer after them."""
        self._questions.finish()

    def _named(self, sae: Any) -> str:
        if not isinstance(sae, str) or sae not in self.saes:
            raise ValueError(f"there is no SAE {str(sae)[:40]!r} here: expected one of {', '.join(self.saes)}.")
        return sae

    def _prompt(self, text: Any, most: int, new_tokens: int = 0) -> Any:
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the text is empty: type something first.")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("the text holds half of a letter (a lone surrogate), which no tokenizer reads.")
        # So many letters have more tokens than are allowed, in any tokenizer; making tokens of them would take long.
        if len(text) > 100 * most:
            raise ValueError(f"the text is too long: {most} tokens are allowed.")
        first = next(iter(self.saes.values())).sae
        inputs = first.tokenize(text, self.tokenizer)
        if (length := inputs["input_ids"].shape[1]) > most:
            raise ValueError(f"the text has {length} tokens: {most} are allowed.")
        refuse_too_long(length, self.model, new_tokens)
        return inputs.to(input_device(self.model))

    def _strengths(self, given: Any) -> dict[str, dict[int, float]]:
        """By SAE the features that are turned up or down at all."""
        by_sae = given if isinstance(given, dict) and all(isinstance(one, dict) for one in given.values()) else None
        if by_sae is None or sum(map(len, by_sae.values())) > self.limits.features:
            raise ValueError(
                f"strengths are wrong: expected at most {self.limits.features} of them, by SAE and feature."
            )
        chosen = {}
        for sae, strengths in by_sae.items():
            n_features = self.saes[self._named(sae)].sae.config.n_features
            values = {_feature(name, n_features): self._strength(name, value) for name, value in strengths.items()}
            if turned := {feature: value for feature, value in values.items() if value}:
                chosen[sae] = turned
        return chosen

    def _strength(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"the strength of feature {name[:20]} is no number.")
        if abs(value) > (most := self.limits.strength):
            raise ValueError(f"the strength of feature {name[:20]} is {value:g}: at most {most:g} is allowed.")
        return float(value)

    def _known(self, served: ServedSAE, feature: int) -> dict[str, Any]:
        label = served.labels.get(feature, "")
        try:
            known = served.collection.of(feature)
        except KeyError:
            return {"label": label, "maximum": None, "promoted": []}
        promoted = [self._texts([effect.token_id])[0] for effect in known.promoted[:5]]
        return {"label": label, "maximum": significant(known.maximum), "promoted": promoted}


def _feature(name: str, n_features: int) -> int:
    if not name.isascii() or not name.isdigit() or len(name) > 12 or int(name) >= n_features:
        raise ValueError(f"there is no feature {name[:20]!r}: expected 0 to {n_features - 1}.")
    return int(name)
