"""What is known of one training argument: metadata of its field, which help, checks, sweeps and resumption read."""

import json
import math
import os
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field
from numbers import Integral, Real
from typing import Any, Union


@dataclass(frozen=True)
class Range:
    """Which numbers an argument may be; None, where it is allowed, is not looked at.

    Args:
        expected: What an error says behind the argument's name: `"must be positive"`.
        fits: Whether a number is one of them.
    """

    expected: str
    fits: Callable[[float], bool]

    def refuse_unless_fits(self, name: str, value: Any) -> None:
        """Raises a ValueError that names the argument, where its value is none of these numbers."""
        try:
            fits = value is None or self.fits(value)
        except TypeError:  # it is no number
            fits = False
        if not fits:
            raise ValueError(f"{name} {self.expected}, got {value!r}.")


POSITIVE = Range("must be positive", lambda value: value > 0)
NOT_NEGATIVE = Range("must be 0 or more", lambda value: value >= 0)
SHARE_OF_RUN = Range("is a share of the run, between 0 and 1", lambda value: 0 <= value <= 1)
SHARE_OF_DOCUMENTS = Range("is a share of the documents, more than 0 and less than 1", lambda value: 0 < value < 1)
BELOW_ONE = Range("must be at least 0 and less than 1", lambda value: 0 <= value < 1)
A_CONTEXT = Range("must be at least 2 tokens", lambda value: value >= 2)


@dataclass(frozen=True)
class Group:
    """Arguments that `--help` shows together. Called, it declares one of them, which may differ from the others.

    Args:
        title: What the help calls them.
        per_sae: Whether they may differ between the SAEs of a run; else they are of the stream that all share.
        free_on_resume: Whether they may differ between a run and its resumption: they change nothing that is computed.
        on_card: Whether the card of an SAE shows them, where they differ from their defaults.
    """

    title: str
    per_sae: bool = False
    free_on_resume: bool = False
    on_card: bool = True

    def __call__(
        self,
        default: Any,
        help: str,
        range: Range | None = None,
        *,
        per_sae: bool | None = None,
        free_on_resume: bool | None = None,
        on_card: bool | None = None,
        secret: bool = False,
    ) -> Any:
        """The field of a dataclass.

        Args:
            default: Its default; a function is called for one.
            help: A sentence or two.
            range: Which numbers it may be.
            per_sae: None for what the group says; so the next two.
            free_on_resume: Likewise.
            on_card: Likewise.
            secret: Whether no file and no log may hold it.
        """
        told = {
            "help": help,
            "group": self.title,
            "range": range,
            "per_sae": self.per_sae if per_sae is None else per_sae,
            "free_on_resume": self.free_on_resume if free_on_resume is None else free_on_resume,
            "on_card": (self.on_card if on_card is None else on_card) and not secret,
            "secret": secret,
        }
        if callable(default):
            return field(default_factory=default, metadata=told)
        return field(default=default, repr=not secret, metadata=told)


OUTPUT = Group("Output", free_on_resume=True, on_card=False)
LANGUAGE_MODEL = Group("Language model, and the place in it")
SAE_ITSELF = Group("Sparse autoencoder", per_sae=True)
TEXT = Group("Text")
EVALUATION = Group("Evaluation")
OPTIMISATION = Group("Optimisation")
DEAD_FEATURES = Group("Dead features", per_sae=True)
SAVING = Group("Saving and logging", free_on_resume=True)
PUBLISHING = Group("Publishing", free_on_resume=True, on_card=False)


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The types of which a value may have one: of `int | None` both."""
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def plain_value(option: Field, value: Any) -> Any:
    """The value of an argument as files hold it: a path as its text, a number of numpy's or 1e6 as Python's own.

    Choices, and names with values, have checks of their own.

    Raises:
        ValueError: If the value has another type, or is no finite number; names the argument.
    """
    members = members_of(option.type)
    if value is None and type(None) in members:
        return None
    kinds = [_KINDS[one] for one in members if one in _KINDS]
    for _, read in kinds:
        if (found := read(value)) is not None:
            return found
    if len(kinds) < len([one for one in members if one is not type(None)]):
        return value
    raise ValueError(f"{option.name} must be {kinds[0][0]}, got {value!r}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    # An int stays one, however large.
    return value if isinstance(value, int) else float(value)


def _whole_number(value: Any) -> int | None:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _text(value: Any) -> str | None:
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _whole_numbers(value: Any) -> list[int] | None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    found = [_whole_number(one) for one in value]
    return None if None in found else found  # type: ignore[return-value]


_KINDS: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    bool: ("true or false", lambda value: value if isinstance(value, bool) else None),
    int: ("a whole number", _whole_number),
    float: ("a finite number", _number),
    str: ("a text", _text),
    list[int]: ("a list of whole numbers", _whole_numbers),
}


def names_where(options: tuple[Field, ...], told: str) -> set[str]:
    """The arguments of which something is told: `"per_sae"`, `"free_on_resume"`, `"on_card"`, `"secret"`."""
    return {option.name for option in options if option.metadata[told]}


def parse_options(text: str) -> Any:
    """The options of an architecture, given as a JSON object.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"architecture_options must be a JSON object, got {text!r}: {error}.") from error


def default_of(option: Any) -> Any:
    """The default of an argument, in the form that an object of the class has it."""
    if option.default_factory is not MISSING:
        return option.default_factory()
    return {} if option.name == "architecture_options" else option.default
