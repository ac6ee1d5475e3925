"""The well-known published SAEs: where each release lies, what it reads, and what its files leave out.

The table is `catalogue.json`, made by `benchmarks/make_catalogue.py` from facts whose source each entry names. The
names of releases and of the SAEs in them are SAELens' own; `SAE.from_pretrained(name, subfolder=id)` accepts them.
"""

import json
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from hfsae.interop.foreign_names import canonical
from hfsae.suggestions import did_you_mean


@dataclass(frozen=True)
class Release:
    """SAEs that were published together.

    Args:
        name: What SAELens calls the release.
        repo: Hub repository; None where they are published elsewhere.
        base_model: Hub id of the language model.
        format: Name of the format, as in `hfsae.interop.formats`.
        architecture: What all its SAEs are, None where each config says it.
        places: Portable names without the layer; of transcoders where they read and where they write.
        n_saes: How many, None where that is not recorded.
        licence: Licence id of the Hub, None where it is not known.
        source: Where these facts were read.
        tried: Whether loading was tried on its real files; else the entry follows from the format alone.
        patterns: Pairs of id and path, `{0}` standing for the id's first number.
        ids: Paths of SAEs that no pattern covers, by id.
        input_transform: What its language model's processing did to activations, which the files do not say.
        input_scales: What activations were multiplied by, by path, where the files do not say it.
    """

    name: str
    repo: str | None
    base_model: str | None
    format: str
    architecture: str | None
    places: list[str]
    n_saes: int | None
    licence: str | None
    source: str
    tried: bool
    patterns: list[list[str]] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    input_transform: str | None = None
    input_scales: dict[str, float] = field(default_factory=dict)

    def path_of(self, sae_id: str) -> str:
        """The subfolder, or file, of an SAE of the release.

        Args:
            sae_id: Its id in SAELens, such as `"blocks.8.hook_resid_pre"`, or the path itself.

        Raises:
            ValueError: If it is neither, naming what ids look like.
        """
        if sae_id in self.ids:
            return self.ids[sae_id]
        for of_id, of_path in self.patterns:
            for pattern in (of_id, of_path):
                if (found := _numbers(pattern, sae_id)) is not None:
                    return of_path.format(*found) if pattern == of_id else sae_id
        if sae_id in self.ids.values() or not (self.ids or self.patterns):
            return sae_id
        shown = [re.sub(r"\{\d+\}", "N", pattern) for pattern, _ in self.patterns] + list(self.ids)[:3]
        raise ValueError(f"{self.name} has no SAE {sae_id!r}; its ids are such as {', '.join(shown)}.")

    def holds(self, path: str) -> bool:
        """Whether a path of the repository is of this release."""
        known = any(_numbers(of_path, path) is not None for _, of_path in self.patterns)
        return known or path in self.ids.values()

    def facts(self, path: str) -> dict[str, Any]:
        """Config fields that the files of one SAE may leave out."""
        facts: dict[str, Any] = {"base_model": self.base_model, "input_transform": self.input_transform}
        layer = re.search(r"(?:layer_?|blocks\.|-l|[/_]l)(\d+)", f"/{path}", re.IGNORECASE)
        if layer is not None and self.places:
            roles = [canonical(f"{role}.{layer[1]}", self.base_model) for role in self.places]
            facts |= dict(zip(("hook_point", "target_hook_point"), roles, strict=False))
        return {key: value for key, value in facts.items() if value is not None}


@cache
def releases() -> dict[str, Release]:
    """Every release by name."""
    entries = json.loads((files("hfsae.interop") / "catalogue.json").read_text(encoding="utf-8"))
    return {entry["name"]: Release(**entry) for entry in entries}


def search(text: str = "", **wanted: Any) -> list[Release]:
    """The releases whose name, repository, base model, format or places hold every word of a text.

    Args:
        text: Words, in any case.
        **wanted: Fields that have to be equal, in any case: `base_model` (its owner may be left out),
            `format`, `architecture`.

    Raises:
        ValueError: If no release at all has such a field; names those there are.

    Example:
        >>> from hfsae.interop.catalogue import search
        >>> [release.name for release in search("goodfire 8b")]
        ['goodfire-llama-3.1-8b-instruct']
    """
    for key, value in wanted.items():
        known = sorted({str(getattr(release, key)) for release in releases().values()} - {"None"}, key=str.lower)
        if value is not None and not any(_says(one, value) for one in known):
            raise ValueError(
                f"no release has the {key} {value!r}.{did_you_mean(value, known)} Known: {', '.join(known)}."
            )
    found = []
    for release in releases().values():
        told = " ".join(
            [release.name, str(release.repo), str(release.base_model), release.format, *release.places]
        ).lower()
        fits = all(_says(getattr(release, key), value) for key, value in wanted.items() if value is not None)
        if fits and all(word in told for word in text.lower().split()):
            found.append(release)
    return found


def _says(value: str | None, wanted: str) -> bool:
    """Whether a field of a release is what was asked for: `gpt2` is `openai-community/gpt2`."""
    told = str(value).lower()
    return wanted.lower() in (told, told.rpartition("/")[2])


def resolve(name: str, sae_id: str) -> tuple[str, str] | None:
    """Repository and path of an SAE that is called as SAELens calls it; None for names that are no release's.

    Raises:
        ValueError: If the release has no such SAE, or is not on the Hub.
    """
    release = releases().get(name)
    if release is None:
        return None
    if release.repo is None:
        raise ValueError(f"{name} is not on the Hub: download it from where {release.source} says, and load the file.")
    return release.repo, release.path_of(sae_id)


def located(place: str | os.PathLike, sae_id: str) -> tuple[str, str]:
    """Where an SAE lies: repository and path if a release is named, else folder or repository and path as they are.

    A folder of a release's name comes before the release.

    Raises:
        ValueError: As `resolve`.
    """
    place = os.fspath(place)
    return (None if os.path.exists(place) else resolve(place, sae_id)) or (place, sae_id)


def release_of(repo: str | None, path: str) -> Release | None:
    """The release that an SAE of a repository belongs to, if any is known."""
    return next((known for known in releases().values() if known.repo == repo and known.holds(path)), None)


def _numbers(pattern: str, text: str) -> list[str] | None:
    """The numbers that make a text of a pattern, in the order of the pattern's own; None if it does not fit."""
    order = [int(number) for number in re.findall(r"\{(\d+)\}", pattern)]
    pieces = re.split(r"\{\d+\}", pattern)
    expression, seen = re.escape(pieces[0]), set()
    for number, piece in zip(order, pieces[1:], strict=True):
        expression += (f"(?P=n{number})" if number in seen else rf"(?P<n{number}>\d+)") + re.escape(piece)
        seen.add(number)
    found = re.fullmatch(expression, text)
    return None if found is None else [found[f"n{number}"] for number in sorted(seen)]
