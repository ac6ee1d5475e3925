"""`HookPoint`, a place in a model that can be read and written, and the error for places that are not there."""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

Side = Literal["input", "output"]


class HookPointError(ValueError):
    """A hook point that a model does not have, or that cannot be read or written the way it was asked."""


@dataclass(frozen=True)
class HookPoint:
    """One side of one module: what `module.forward` takes first, or what it returns first.

    The string form, `transformer.h.8.output`, is the canonical name: the module's path in the Hugging Face model,
    as `model.get_submodule` takes it, then the side. It is what configs store. A module that runs several times in one
    forward pass needs to say which time is meant: `model.L_module.layers.1.output@2` is the third. Where several
    residual streams go side by side (Gemma 3n, DeepSeek V4), `model.layers.1.output[0]` is the first of them.

    Attributes:
        path: Path of the module from the root of the model, never empty.
        side: `"input"` or `"output"`.
        visit: Which of the module's runs in a forward pass is meant, from 0; None where it runs once.
        stream: Which of several streams is meant, from 0; None for all that passes.

    Example:
        >>> HookPoint.parse("transformer.h.8.output")
        HookPoint(path='transformer.h.8', side='output')
        >>> str(HookPoint("transformer.h.8", "output"))
        'transformer.h.8.output'
    """

    path: str
    side: Side
    visit: int | None = None
    stream: int | None = None

    def __str__(self) -> str:
        stream = "" if self.stream is None else f"[{self.stream}]"
        visit = "" if self.visit is None else f"@{self.visit}"
        return f"{self.path}.{self.side}{stream}{visit}"

    @classmethod
    def parse(cls, canonical: str) -> "HookPoint":
        """Read a canonical name; no model is needed.

        The last component is always the side, because some models have modules that are called `output`:
        `encoder.layer.0.output.output` is what the module `encoder.layer.0.output` returns.

        Args:
            canonical: A module path followed by `.input` or `.output`. Then perhaps the number of a stream in
                brackets, then perhaps `@` and the number of a visit.

        Raises:
            HookPointError: If the last component is not a side, or there is no path before it.
        """
        place, visit = split_visit(canonical)
        place, stream = split_stream(place)
        path, _, side = place.rpartition(".")
        if not path or side not in get_args(Side):
            raise HookPointError(
                f"{canonical!r} is not a canonical hook point: expected a module path followed by '.input' or "
                f"'.output', such as 'transformer.h.8.output'"
            )
        return cls(path, cast(Side, side), visit, stream)


def split_visit(name: str) -> tuple[str, int | None]:
    """A name without its visit, and the visit or None: `("resid_post.3", 2)` for `"resid_post.3@2"`."""
    match = re.fullmatch(r"(.+)@(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def split_stream(name: str) -> tuple[str, int | None]:
    """A name without its stream, and the stream or None: `("resid_post.3", 0)` for `"resid_post.3[0]"`."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (match[1], int(match[2])) if match else (name, None)
