"""What `hfsae search` prints."""

from collections.abc import Iterator
from pathlib import Path

from hfsae.analysis import TokenTexts
from hfsae.analysis.shading import printable
from hfsae.data import find_document_column, load_text
from hfsae.meaning.contrast import contrast
from hfsae.meaning.finding import (
    NothingCountsError,
    labelled_features,
    passage_features,
    promoting_features,
    refuse_bad_numbers,
)
from hfsae.meaning.label_embeddings import Embedder, nearest_labels
from hfsae.saved.kept_features import SavedFeatures


def word_lines(
    opened: SavedFeatures, text: str, *, top: int, prior: float, embed: Embedder | None = None
) -> Iterator[str]:
    """Features whose label says the words, that promote one of them, and that fire on them.

    Args:
        opened: The SAE and its features.
        text: Words, or a passage.
        top: Features of each kind.
        prior: As in `passage_features`.
        embed: Finds labels by what they mean too; None: by their words alone.

    Raises:
        ValueError: If a number is impossible, or there is an encoder and no feature has a label. Likewise if no token
            of the text counts for the SAE, and its words find nothing.
    """
    refuse_bad_numbers(prior, top)  # before anything is printed
    collection, texts = opened.collection, TokenTexts(opened.tokenizer)
    names = {feature: label.text for feature, label in opened.labels.items()}
    if labelled := labelled_features(names, text)[:top]:
        yield "labels that say so"
        yield from (f"  {_name(feature, names)}" for feature in labelled)
    if embed is not None:
        if not names:
            raise ValueError("no feature has a label whose meaning could be compared: hfsae label writes labels.")
        yield "labels that mean something like it"
        yield from (
            f"  {_name(one, names)}: cosine {near:.2f}" for one, near in nearest_labels(names, text, embed, top=top)
        )
    if promoting := promoting_features(collection, texts, text, top=top):
        yield "features that make one of these words likelier"
        for feature, token, effect in promoting:
            yield f"  {_name(feature, names)}: {printable(repr(token))} by {effect:.2f}"
    try:
        found = passage_features(opened.sae, opened.model, opened.tokenizer, collection, text, top=top, prior=prior)
    except NothingCountsError:
        if not (labelled or promoting or embed):
            raise
        yield "its tokens do not count for this SAE: a passage of more words says what fires on it"
        return
    yield f"features that fire on it, against {collection.about.n_tokens:,} tokens of other text"
    for one in found:
        times = f"{one.tokens} token" + ("" if one.tokens == 1 else "s")
        yield (
            f"  {_name(one.feature, names)}: on {times}, {one.share:.1%} here and {one.background:.3%} elsewhere; "
            f"log odds {one.log_odds:.2f} (z {one.z:.1f})"
        )
    if not found:
        yield "  none more often than elsewhere"


def contrast_lines(
    opened: SavedFeatures, positive: str, negative: str, *, marked: bool, top: int, n_permutations: int, seed: int
) -> Iterator[str]:
    """Features that tell two files of texts apart.

    Args:
        opened: The SAE.
        positive: A file of texts that have what is looked for.
        negative: One of texts that lack it.
        marked: As in `contrast`.
        top: How many features.
        n_permutations: As in `contrast`.
        seed: As there.
    """
    sets = [texts_of(positive), texts_of(negative)]
    options = {"top": top, "n_permutations": n_permutations, "seed": seed}
    found = contrast(opened.sae, opened.model, opened.tokenizer, *sets, marked=marked, **options)
    names = {feature: label.text for feature, label in opened.labels.items()}
    kind = "parts of texts" if marked else "texts"
    yield f"{found.n_positive} {kind} with it, {found.n_negative} without; {n_permutations:,} random dealings"
    for one in found.features:
        yield (
            f"  {_name(one.feature, names)}: AUROC {one.auroc:.2f} (p {one.p_value:.3f}), fires in {one.positives} "
            f"and {one.negatives}; from {one.threshold:.3g} on precision {one.precision:.2f}, recall {one.recall:.2f}"
        )
    yield (
        f"the whole search on texts that it did not see: precision {found.precision:.2f}, recall {found.recall:.2f}"
    )


def texts_of(name: str | Path) -> list[str]:
    """The texts of a file: the lines of a .txt file, the rows of any other.

    Args:
        name: A file, or another dataset.

    Raises:
        ValueError: If its rows are no texts.
        FileNotFoundError: If it is not there.
    """
    split = "train" if Path(name).is_file() else None
    dataset = load_text(name, split=split, sample_by="line" if str(name).endswith(".txt") else None)
    contents = find_document_column(dataset, None)
    if contents.kind != "text":
        raise ValueError(f"{name} holds no texts, but {contents.kind}: expected a column of texts.")
    return [text for text in dataset[contents.column] if text]  # type: ignore[index]


def _name(feature: int, names: dict[int, str]) -> str:
    return f"{feature} ({printable(names[feature])})" if feature in names else str(feature)
