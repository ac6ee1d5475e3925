"""The prompts that label features: templates in jinja, each of which a user may replace by a file of the same name.

A template has two blocks, `system` and `user`, and may have a third, `assistant`: with it a model that runs here
begins its answer. A template prints what it is given:

| file | is given |
|---|---|
| `explain.jinja` | `examples` with `marked` (text) and `strengths` (pairs of a token and 1 to 10), `promoted` |
| `detection.jinja`, `fuzzing.jinja` | `explanation`, and `examples` (texts) |
| `simulation.jinja` | `explanation`, `tokens` (texts), and `most` (the largest number) |
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hfsae.meaning.chat import Conversation

NAMES = ("explain", "detection", "fuzzing", "simulation")
_ALWAYS_ASKED = NAMES[:3]
_BLOCKS = ("system", "user")
_BEGINNING = "assistant"


@dataclass(frozen=True)
class Prompts:
    """The prompts.

    Args:
        sources: The text of each template, by the names of `NAMES`.
    """

    sources: dict[str, str]

    @classmethod
    def load(cls, folder: str | Path | None = None) -> "Prompts":
        """The prompts of the package, in whose place come those of a folder.

        Args:
            folder: Holds `explain.jinja`, `detection.jinja`, `fuzzing.jinja` or `simulation.jinja`; None takes those
                of the package.

        Raises:
            FileNotFoundError: If the folder is not there, or holds none of these files.
            ValueError: If a template is none, or lacks a block.
        """
        own = files("hfsae.meaning").joinpath("templates")
        sources = {name: own.joinpath(f"{name}.jinja").read_text(encoding="utf-8") for name in NAMES}
        if folder is not None:
            given = {name: Path(folder) / f"{name}.jinja" for name in NAMES}
            given = {name: path for name, path in given.items() if path.is_file()}
            if not given:
                expected = ", ".join(f"{name}.jinja" for name in NAMES)
                raise FileNotFoundError(f"there is no prompt in {folder}: expected one or more of {expected}.")
            sources |= {name: path.read_text(encoding="utf-8") for name, path in given.items()}
        prompts = cls(sources)
        for name in NAMES:
            prompts._template(name)
        return prompts

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the templates without that of the simulation, which few labels were asked with."""
        return self._digest(_ALWAYS_ASKED)

    @cached_property
    def digest_with_simulation(self) -> str:
        """SHA-256 of all templates."""
        return self._digest(NAMES)

    def _digest(self, names: Sequence[str]) -> str:
        joined = "\0".join(self.sources[name] for name in names)
        return hashlib.sha256(joined.encode()).hexdigest()

    def render(self, name: str, **values: Any) -> Conversation:
        """A prompt as messages.

        Args:
            name: Which one.
            **values: What its template prints.

        Raises:
            ValueError: If the template asks for something else.
        """
        template = self._template(name)
        try:
            texts = {
                role: "".join(template.blocks[role](template.new_context(values))).strip()
                for role in (*_BLOCKS, _BEGINNING)
                if role in template.blocks
            }
        except TemplateError as error:
            raise ValueError(f"the prompt {name}.jinja cannot be filled in: {error}.") from error
        return [{"role": role, "content": text} for role, text in texts.items() if text]

    def _template(self, name: str) -> Template:
        # Users may take templates from others: in a sandbox these print, and do nothing else.
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(self.sources[name])
        except TemplateError as error:
            raise ValueError(f"the prompt {name}.jinja is no template: {error}.") from error
        if missing := [block for block in _BLOCKS if block not in template.blocks]:
            raise ValueError(f"the prompt {name}.jinja has no block {missing[0]!r}; expected {' and '.join(_BLOCKS)}.")
        return template
