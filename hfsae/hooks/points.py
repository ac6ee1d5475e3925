"""`HookPoint`, a place in a model that can be read and written, and the error for places that are not there."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

Side = Literal["input", "output"]


class HookPointError(ValueError):
    """A hook point that a model does not have, or that cannot be read or written the way it was asked."""


@dataclass(frozen=True)
class HookPoint:
    """One side of one module: what `module.forward` takes first, or what it returns first.

    The string form, `transformer.h.8.output`, is the canonical name: the module's path in the Hugging Face model,
    as `model.get_submodule` takes it, then the side. It is what configs store.

    Attributes:
        path: Path of the module from the root of the model, never empty.
        side: `"input"` or `"output"`.

    Example:
        >>> HookPoint.parse("transformer.h.8.output")
        HookPoint(path='transformer.h.8', side='output')
        >>> str(HookPoint("transformer.h.8", "output"))
        'transformer.h.8.output'
    """

    path: str
    side: Side

    def __str__(self) -> str:
        return f"{self.path}.{self.side}"

    @classmethod
    def parse(cls, canonical: str) -> "HookPoint":
        """Read a canonical name; no model is needed.

        The last component is always the side, because some models have modules that are called `output`:
        `encoder.layer.0.output.output` is what the module `encoder.layer.0.output` returns.

        Args:
            canonical: A module path followed by `.input` or `.output`.

        Raises:
            HookPointError: If the last component is not a side, or there is no path before it.
        """
        path, _, side = canonical.rpartition(".")
        if not path or side not in get_args(Side):
            raise HookPointError(
                f"{canonical!r} is not a canonical hook point: expected a module path followed by '.input' or "
                f"'.output', such as 'transformer.h.8.output'"
            )
        return cls(path, cast(Side, side))
