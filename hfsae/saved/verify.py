"""Is a card true? An SAE is loaded, measured again on the text that its card names, and compared."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hfsae.connection import reachable
from hfsae.evaluation.metrics import METRIC_TITLES, METRICS
from hfsae.evaluation.protocol import changed_settings, measured_digest
from hfsae.evaluation.self_check import self_check
from hfsae.hub import model_index
from hfsae.hub.card import CARD_FILE, read_card
from hfsae.hub.errors import usable_token
from hfsae.hub.kinds import mapping, number
from hfsae.hub.markdown import figure
from hfsae.hub.snapshot import look
from hfsae.hub.written_card import front_and_text
from hfsae.identity import weights_sha256
from hfsae.interop import catalogue
from hfsae.loading import holds_config, load_sae
from hfsae.saved.measuring_again import measure_again

# What a card claims first of all.
COMPARED = tuple(metric.name for metric in METRICS if metric.compared)
# Other machines and dtypes round differently: shares of the claimed value, at least of 1.
ON_THE_SAME_TEXT, ON_OTHER_TEXT = 0.005, 0.1


@dataclass(frozen=True)
class Claim:
    """A figure of the card, and what it was when it was measured again; None where there is none."""

    title: str
    claimed: float | None
    measured: float | None
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two agree; a figure that the card does not claim cannot be wrong."""
        if self.claimed is None:
            return True
        if self.measured is None:
            return False
        return abs(self.claimed - self.measured) <= self.tolerance * max(1.0, abs(self.claimed))


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`; printed, it is a table with a verdict.

    Args:
        claims: The figures compared.
        problems: What is wrong beside figures, and what may have caused wrong ones.
        same_text: Whether it was measured on the text that the card names, as much of it.
        project: Whose format the SAE is in, where it is not hfsae's: what counts is what that project reports of it.
    """

    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    same_text: bool
    project: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the card is true."""
        return not self.problems and all(claim.holds for claim in self.claims)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        wide = max(20, *(len(claim.title) for claim in self.claims))
        lines = [f"{'metric':<{wide}} {'card':>10} {'measured':>10}"]
        for claim in self.claims:
            mark = "" if claim.holds else "  differs"
            lines.append(f"{claim.title:<{wide}} {figure(claim.claimed):>10} {figure(claim.measured):>10}{mark}")
        lines += [f"- {problem}" for problem in self.problems]
        text = "the text that it names" if self.same_text else "another text, where figures may differ by a tenth"
        said = "The card" if self.project is None else f"What {self.project} says of it"
        verdict = f"{said} is {'' if self.ok else 'not '}true"
        return "\n".join([*lines, f"{verdict}, measured on {text}."])


def verify(
    source: str | os.PathLike,
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    allow_pickle: bool = False,
    model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    max_tokens: int | None = None,
    batch_size: int = 16,
) -> Verification:
    """Loads an SAE, measures it again and compares with its card.

    An SAE of another project has no card of ours. It is compared with the L0 that its project reports, where it does,
    and `self_check` looks whether it reconstructs its input.

    Args:
        source: A Hub repository, a folder or a file, or a release of the catalogue.
        subfolder: The SAE's folder in it, or its id in the release.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored.
        allow_pickle: Whether weights of other projects may be pickles.
        model: The language model; None loads the one that the config names.
        dataset: The text; None takes the one that was recorded.
        dataset_config: Configuration of that dataset.
        split: Split of that dataset; None: the only one, or `"test"`.
        max_tokens: Tokens to measure on; None: as many as were recorded.
        batch_size: Blocks of text per pass.

    Returns:
        What agrees and what does not; where figures differ, with the causes that `self_check` finds.

    Raises:
        ValueError: If it is no SAE, its card makes no claims, or no text is named and none was recorded.
        OSError: If the SAE, its card, the model or the text is not there.
    """
    token = usable_token(token)
    source, subfolder = catalogue.located(source, subfolder)
    with reachable():
        at_hub: dict[str, Any] = {} if Path(source).exists() else {"token": token}
        if at_hub:
            at_hub |= look(source, revision, token).where
        ours = holds_config(source, {"subfolder": subfolder, **at_hub})
        card = card_file(source, subfolder, at_hub) if ours else None
        sae = load_sae(source, subfolder=subfolder, allow_pickle=allow_pickle, **at_hub)
    claimed = {} if card is None else claims_of(card, source, sae.config.metrics)
    project = None if ours else str((sae.config.training or {}).get("converted_from"))
    if not ours and (reported := number((sae.config.training or {}).get("reported_l0"))) is not None:
        claimed["l0"] = reported
    recorded, digest = dict(sae.config.metrics or {}), measured_digest(sae.config)
    changed = changed_settings(sae.config)
    again = measure_again(
        sae,
        source,
        model=model,
        dataset=dataset,
        dataset_config=dataset_config,
        split=split,
        max_tokens=max_tokens,
        batch_size=batch_size,
    )
    same_text = dataset is None and not again.text_changed and again.metrics["n_tokens"] == recorded.get("n_tokens")
    tolerance = ON_THE_SAME_TEXT if same_text else ON_OTHER_TEXT
    claims = tuple(
        Claim(METRIC_TITLES[name], claimed.get(name), number(again.metrics.get(name)), tolerance) for name in COMPARED
    )
    problems = []
    if digest is not None and digest != weights_sha256(sae):
        problems.append("The weights are not the measured ones: they were changed since.")
    if changed:
        problems.append(f"The settings are not the measured ones: {', '.join(changed)} changed since.")
    if again.text_changed:
        problems.append("The text is not the one that was measured: it was changed since.")
    if different := [METRIC_TITLES[name] for name in claimed if ours and number(recorded.get(name)) != claimed[name]]:
        problems.append(f"The card and config.json differ in {', '.join(different)}.")
    if not ours or not all(claim.holds for claim in claims):
        check = self_check(sae, again.model, again.blocks)
        problems += [cause for cause in check.causes if cause not in problems]
        if not ours and not check.ok:
            problems.append(f"It does not reconstruct what it is fed here: {check.measured}.")
    return Verification(claims, tuple(problems), same_text, project)


def card_file(source: str | os.PathLike, subfolder: str, at_hub: dict[str, Any]) -> Path:
    """The file of an SAE's card."""
    name = f"{subfolder.strip('/')}/{CARD_FILE}".lstrip("/")
    path = Path(source) / name
    if at_hub:
        try:
            return Path(hf_hub_download(str(source), name, **at_hub))
        except RemoteEntryNotFoundError as error:
            raise FileNotFoundError(f"{source} has no card {name} to verify.") from error
    if not path.is_file():
        raise FileNotFoundError(f"{source} has no card {name} to verify: write it with `hfsae card`.")
    return path


def claims_of(path: Path, source: str | os.PathLike, metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures in the metadata of a card, of the text that the SAE's record names."""
    called = f"{path.name} of {source}"
    front, _ = front_and_text(read_card(path, called))
    data = yaml.safe_load(front) if front else None
    try:
        claims = model_index.claims(mapping(data).get("model-index"), metrics)
    except ValueError as error:
        raise ValueError(f"the card {called} cannot be verified: {error}") from None
    if not claims:
        raise ValueError(f"the card {called} claims no figures, or calls them stale: `hfsae eval` measures.")
    return claims
