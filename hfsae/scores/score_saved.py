"""Scores of saved SAEs: text and labels by name, `scores.json` beside the weights, the card."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hfsae.autoencoder.registry import architecture_name
from hfsae.autoencoder.signed import refuse_signed
from hfsae.data import find_document_column, load_text, split_documents
from hfsae.data.stdlib_text import stdlib_dataset
from hfsae.data.text_source import refuse_parts_alone
from hfsae.folders import can_be_file, can_be_written_in
from hfsae.hub.card import write_card
from hfsae.hub.score_summary import SCORES_FILE, write_scores, write_stability
from hfsae.identity import Identity
from hfsae.language_model import origin_of, rename_base_model
from hfsae.modeling import SAE
from hfsae.sae_folders import place_of
from hfsae.saving import write_json
from hfsae.scores.absorption import refuse_two_places
from hfsae.scores.concepts import PYTHON_CONCEPTS, PatternLabels, read_concepts
from hfsae.scores.document_sets import BUILT_IN, DocumentSet, labelled_dataset
from hfsae.scores.matching import Matching, match_features, run_name
from hfsae.scores.noise import ReseedNoise
from hfsae.scores.reseeds import Reseeds, reseeds
from hfsae.scores.score import KINDS, LabelledText, SAEScores, check_kinds, score
from hfsae.scores.score_report import comparison_lines, headline, score_lines, stability_lines
from hfsae.scores.shared_readings import SharedReadings

logger = logging.getLogger(__name__)

_SHARES = {"train": 0.7, "evaluation": 0.3}


def score_saved(
    sources: Sequence[str | Path],
    *,
    tell: Callable[[str], None] = logger.info,
    kinds: Sequence[Any] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    concepts: str | Path | None = None,
    labelled: str | None = None,
    labelled_config: str | None = None,
    labelled_split: str | None = None,
    label_column: str = "label",
    text_column: str | None = None,
    base_model: str | None = None,
    json_file: str | Path | None = None,
    write: bool = False,
    subfolder: str = "",
    revision: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> dict[str, SAEScores]:
    """Scores SAEs one after another, tells the figures, and writes them where that is asked for.

    Args:
        sources: Folders or Hub repositories of SAEs (`org/name/subfolder@revision`).
        tell: Is told the figures, a line at a time.
        kinds: Which scores; None for all.
        dataset: Text whose tokens are labelled; None for Python's standard library.
        dataset_config: Configuration of that dataset.
        split: Split of it; None for `"train"`.
        concepts: A file of concepts; None for 22 of Python source.
        labelled: A dataset of labelled documents; None for the sets that come along.
        labelled_config: Configuration of that dataset.
        labelled_split: Its split; None for `"train"`.
        label_column: Its column of labels.
        text_column: The column of texts of what is named; None finds it.
        base_model: The language model; None for the one that the config names.
        json_file: Is written with all figures.
        write: Whether `scores.json` and the card are written beside the weights.
        subfolder: The SAE's folder in its repository.
        revision: Branch, tag or commit of it.
        allow_pickle: Whether weights of other projects may be pickles.
        **options: For `score`.

    Returns:
        The scores by source.

    Raises:
        ValueError: As `score`; also if there are several SAEs of one name, or `write` names no folder,
            or `labelled` is given where no documents are scored. Likewise if a part of a dataset is named without it.
        OSError: If an SAE, its language model or a text is not there, or `write` names a folder in which nothing can
            be written.
    """
    wanted: list[Any] = list(kinds or KINDS)
    check_kinds(wanted)
    names = [str(source) for source in sources]
    if len(set(names)) < len(names):
        raise ValueError("an SAE is named twice: name each once.")
    folders = [Path(name) / subfolder for name in names]
    if write and (missing := [folder for folder in folders if not folder.is_dir()]):
        raise ValueError(f"scores.json is written beside the weights, and {missing[0]} is no folder here.")
    for folder in folders if write else ():
        can_be_written_in(folder)
    if labelled is not None and "documents" not in wanted:
        raise ValueError(
            "labelled documents are read for the scores of documents, which are not asked for: leave labelled out, or "
            "ask for documents too."
        )
    refuse_parts_alone(dataset, dataset_config, split)
    if labelled is None and (labelled_config is not None or labelled_split is not None or label_column != "label"):
        raise ValueError("labelled_config, labelled_split and label_column are of labelled documents: name them too.")
    if json_file is not None:
        can_be_file(json_file)
    placed = {name: place_of(name, subfolder, revision) for name in names}
    saes = {
        name: SAE.from_pretrained(place, allow_pickle=allow_pickle, **where) for name, (place, where) in placed.items()
    }
    for sae in saes.values():  # before any of them is scored
        refuse_signed(sae, "scoring")
        if set(wanted) == {"absorption"}:
            refuse_two_places(sae)
    text = labelled_text(dataset, dataset_config, split, concepts, text_column)
    sets = (
        document_sets(labelled, label_column, text_column, labelled_config, labelled_split)
        if "documents" in wanted
        else []
    )
    found: dict[str, SAEScores] = {}
    gone: dict[str, list[str]] = {}
    model, tokenizer, shared, read_by = None, None, SharedReadings(), None
    for (name, sae), folder in zip(saes.items(), folders, strict=True):
        if base_model is not None:
            rename_base_model(sae.config, base_model)
        origins = [origin_of(sae.config, source) for source in [*sae.config.models_by_source] or [None]]
        if model is None or tokenizer is None or origins != read_by:
            model, tokenizer, shared, read_by = sae.load_base_model(), sae.load_tokenizer(), SharedReadings(), origins
        together = shared if len(saes) > 1 else None  # of one SAE nothing need be kept
        found[name] = score(sae, model, tokenizer, text, documents=sets, kinds=wanted, shared=together, **options)
        for line in score_lines(name, found[name]):
            tell(line)
        if write:
            gone[name] = _write(folder, found[name], sae)
            tell(f"wrote {folder / SCORES_FILE} and {folder / 'README.md'}")
    groups = reseeds(saes) if len(saes) > 1 else []
    several = {name for group in groups if len(group.runs) > 1 for name in group.runs}
    for name, titles in gone.items():
        if titles and name not in several:
            tell(
                f"{name}: left out, since these scores are others than before: what seeds differ by in "
                f"{', '.join(titles)}. Score the runs of all seeds together to have it."
            )
    if json_file is not None:
        write_json(Path(json_file), {name: one.recorded() for name, one in found.items()})
        tell(f"wrote {json_file}")
    if len(saes) > 1:
        tell("")
        matched = match_alike(saes, tell)
        for line in (*comparison_lines(found, groups), *stability_lines(matched, groups)):
            tell(line)
        if write:
            of_folders = dict(zip(saes, folders, strict=True))
            _write_what_seeds_tell(of_folders, saes, found, groups, matched)
            tell("wrote the noise of seeds, and stability, to the cards of runs with other seeds")
    return found


def _write(
    folder: Path, scores: SAEScores, sae: SAE, noise: Mapping[str, Mapping[str, float]] | None = None
) -> list[str]:
    """Writes `scores.json` and the card; gives the titles of which it is no longer said what seeds differ by.

    Args:
        folder: The SAE's folder.
        scores: Its scores.
        sae: The SAE.
        noise: By title what seeds differ by.
    """
    headlines = {title: {**vars(one), **(noise or {}).get(title, {})} for title, one in headline(scores).items()}
    gone = write_scores(folder, headlines, scores.recorded(), Identity.of(sae))
    write_card(folder)
    return gone


def _write_what_seeds_tell(
    folders: Mapping[str, Path],
    saes: Mapping[str, SAE],
    scores: Mapping[str, SAEScores],
    groups: Sequence[Reseeds],
    matched: Mapping[tuple[str, str], Matching],
) -> None:
    """Writes beside the scores of each run what the other seeds of its recipe tell of them."""
    for group in groups:
        headlines = {name: headline(scores[name]) for name in group.runs}
        noise: dict[str, Mapping[str, float]] = {}
        for title in set.intersection(*(set(one) for one in headlines.values())):
            found = ReseedNoise.of([one[title].value for one in headlines.values()])
            if found is not None:
                noise[title] = {"deviation": found.deviation, "seeds": found.n}
        identities = {name: Identity.of(saes[name]) for name in group.runs} if len(group.runs) > 1 else {}
        for name, identity in identities.items():
            for pair, matching in matched.items():
                if name in pair and set(pair) <= set(group.runs):
                    (other,) = set(pair) - {name}
                    title, figures = run_name(other, saes[other]), vars(matching.stability)
                    write_stability(folders[name], title, identities[other].weights_sha256, figures, identity)
            _write(folders[name], scores[name], saes[name], noise)


def match_alike(saes: Mapping[str, SAE], tell: Callable[[str], None] = logger.info) -> dict[tuple[str, str], Matching]:
    """Matches every two SAEs of one architecture and shape. Pairs that cannot be matched are left out.

    Args:
        saes: The SAEs by name.
        tell: Is told which pairs are left out, and why.
    """
    found = {}
    for (name, sae), (other_name, other) in combinations(saes.items(), 2):
        if sae.config.is_cross_layer or other.config.is_cross_layer:
            continue  # which are not matched
        alike = sae.feature_directions.shape == other.feature_directions.shape
        if alike and architecture_name(sae.config) == architecture_name(other.config):
            try:
                found[name, other_name] = match_features(sae, other)
            except ValueError as error:
                tell(f"{name} and {other_name} are not matched: {error}")
    return found


def labelled_text(
    dataset: str | None = None,
    config: str | None = None,
    split: str | None = None,
    concepts: str | Path | None = None,
    text_column: str | None = None,
) -> LabelledText:
    """Text by name, its documents in a random order, and what labels its tokens.

    Args:
        dataset: As for `load_text`; None for Python's standard library.
        config: Configuration of it.
        split: Its split; None for `"train"`. Seven tenths of its documents are to fit probes on.
        concepts: A file of concepts; None for those of Python source.
        text_column: The column of texts; None finds it.

    Raises:
        ValueError: If the concepts are none, or the dataset has no texts.
        FileNotFoundError: If the file or the dataset is not there.
    """
    labels = PatternLabels(PYTHON_CONCEPTS) if concepts is None else read_concepts(concepts)
    if dataset is None:
        return LabelledText(
            stdlib_dataset("train").shuffle(seed=0), stdlib_dataset("held_out").shuffle(seed=0), labels
        )
    loaded: Any = load_text(dataset, config=config, split=split or "train")
    contents = find_document_column(loaded, text_column)
    if contents.kind != "text":
        raise ValueError(f"{dataset} holds no texts, but {contents.kind}: expected a column of texts.")
    loaded = loaded.select_columns([contents.column])
    if contents.column != "text":
        loaded = loaded.rename_column(contents.column, "text")
    loaded = loaded.filter(bool, input_columns=["text"])
    train, held_out = (split_documents(loaded, part, shares=_SHARES) for part in ("train", "evaluation"))
    return LabelledText(train.shuffle(seed=0), held_out.shuffle(seed=0), labels, dataset)


def document_sets(
    labelled: str | None = None,
    label_column: str = "label",
    text_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
) -> list[DocumentSet]:
    """Sets of labelled documents.

    Args:
        labelled: A dataset; None for the sets that come along.
        label_column: Its column of labels.
        text_column: Its column of texts; None finds it.
        config: Configuration of the dataset.
        split: Its split; None for `"train"`.

    Raises:
        ValueError: As `labelled_dataset`.
    """
    if labelled is not None:
        return [labelled_dataset(labelled, label_column, config=config, split=split, text_column=text_column)]
    return [make() for make in BUILT_IN.values()]
