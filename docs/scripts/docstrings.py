"""An extension of griffe, which reads the code for the reference pages: what it would not see by itself."""

import re
from typing import Any

import griffe

_DATACLASS = griffe.Decorator(
    griffe.ExprCall(griffe.ExprName("dataclasses.dataclass"), [griffe.ExprKeyword("kw_only", "True")]),
    lineno=None,
    endlineno=None,
)


class Docstrings(griffe.Extension):
    """Reads `Example:` as griffe reads `Examples:`, and configs as the dataclasses that transformers makes of them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """griffe calls this for every object that it has read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """griffe calls this for every class, before it looks for dataclasses."""
        if cls.name.endswith("SAEConfig"):
            cls.decorators.append(_DATACLASS)
        if cls.name == "SAEConfig":  # read as a property, given as a field
            cls.members["expansion_factor"].labels = {"class-attribute", "instance-attribute"}
            cls.members["expansion_factor"].value = "None"
