"""Features found by words: the features that fire on a passage, and the features whose label or promoted tokens say
the words.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hfsae.analysis import FeatureCollection, TokenTexts
from hfsae.analysis.document_sequences import DocumentSequenceReader
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional.precision import own_precision
from hfsae.identity import Identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIOR = 10.0
"""Tokens that the prior of `passage_features` is worth."""


@dataclass(frozen=True)
class PassageFeature:
    """A feature that fires more often on a passage than elsewhere.

    Attributes:
        feature: Which one.
        tokens: On how many tokens of the passage it fires.
        share: On which share of them.
        background: On which share of the tokens of the collection.
        log_odds: The logarithm of the ratio of the odds, with the prior.
        z: `log_odds` in standard errors; features are ordered by it.
    """

    feature: int
    tokens: int
    share: float
    background: float
    log_odds: float
    z: float


class NothingCountsError(ValueError):
    """A passage has no token that counts for an SAE."""


@own_precision()
def passage_features(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    collection: FeatureCollection,
    text: str,
    *,
    top: int = 10,
    prior: float = PRIOR,
) -> list[PassageFeature]:
    """The features that a passage has more of than the text of a collection.

    Feature f fires on y of n tokens here, and on Y of N in the collection. The prior is α = `prior` · Y / N tokens
    with f among `prior` tokens. Then

        log odds ratio   δ = log (y + α) / (n + prior − y − α) − log (Y + α) / (N + prior − Y − α)
        its variance     1 / (y + α) + 1 / (Y + α)

    which is the log-odds ratio with an informative Dirichlet prior of Monroe, Colaresi and Quinn 2008. The prior has
    the share of the background, so a rare feature that fires once does not come first for that alone.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        collection: What `collect_features` found of this SAE: the background.
        text: The passage.
        top: How many features.
        prior: How many tokens the prior is worth.

    Raises:
        NothingCountsError: If no token of the passage counts, as of a single word at position 0.
        ValueError: If the collection is of another SAE, or a number is impossible.
    """
    refuse_swapped(sae, model)
    refuse_bad_numbers(prior, top)
    if (unlike := Identity.of(sae).unlike(vars(collection.about))) is not None:
        raise ValueError(f"these features were collected of {unlike}: run collect_features on this SAE.")
    reader, pieces = FeatureReader(sae, model), DocumentSequenceReader(sae.config, model, tokenizer)
    n, here = 0, torch.zeros(sae.config.n_features, dtype=torch.float64)
    for batch in pieces.batches([text]):
        here += torch.bincount(reader.read(batch.tokens).features, minlength=len(here))
        n += int(batch.tokens.keep.sum())
    if not n:
        raise NothingCountsError("the passage has no token that counts for this SAE: write some more words.")
    features = collection.features[here[collection.features] > 0]
    y, everywhere = here[features], collection.statistics.tokens_firing[features].double()
    n_background = collection.about.n_tokens
    # A feature that the collection never saw is rarer than once in all of its tokens.
    share = everywhere.clamp(min=0.5) / n_background
    alpha = prior * share
    log_odds = ((y + alpha) / (n + prior - y - alpha)).log()
    log_odds -= ((everywhere + alpha) / (n_background + prior - everywhere - alpha)).log()
    z = log_odds / (1 / (y + alpha) + 1 / (everywhere + alpha)).sqrt()
    order = z.argsort(descending=True, stable=True)[:top]
    return [
        PassageFeature(
            feature=int(features[row]),
            tokens=int(y[row]),
            share=float(y[row]) / n,
            background=float(everywhere[row]) / n_background,
            log_odds=float(log_odds[row]),
            z=float(z[row]),
        )
        for row in order.tolist()
        if log_odds[row] > 0
    ]


def refuse_bad_numbers(prior: float, top: int) -> None:
    """Refuses a prior or a number of features by which nothing can be found.

    Raises:
        ValueError: If one of them is impossible.
    """
    if not 0 < prior < math.inf:
        raise ValueError(f"prior is {prior}; expected a finite number above 0.")
    refuse_no_features(top)


def refuse_no_features(top: int) -> None:
    """Refuses a number of features that is less than 1.

    Raises:
        ValueError: If it is.
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected 1 or more.")


def labelled_features(labels: Mapping[int, str], words: str) -> list[int]:
    """The features whose label has all of some words, in any order and spelling of capitals.

    Args:
        labels: Labels by feature.
        words: What is looked for.
    """
    wanted = _words(words)
    return [feature for feature, label in labels.items() if wanted and wanted <= _words(label)]


def promoting_features(
    collection: FeatureCollection, texts: TokenTexts, words: str, *, top: int = 10
) -> list[tuple[int, str, float]]:
    """The features among whose promoted tokens is one of some words.

    Args:
        collection: The features.
        texts: Gives the texts of tokens.
        words: What is looked for; spaces around tokens do not count.
        top: How many features.

    Returns:
        Features with the token and the effect on its logit, the strongest first; none where features have no effects.

    Raises:
        ValueError: If `top` is less than 1.
    """
    refuse_no_features(top)
    if collection.logits is None or not (wanted := {word.casefold() for word in words.split()}):
        return []
    promoted, effects = collection.logits[:2]
    known = {token: texts([token])[0] for token in promoted.unique().tolist()}
    right = torch.tensor([token for token, text in known.items() if text.strip().casefold() in wanted])
    rows, columns = torch.isin(promoted, right).nonzero(as_tuple=True)
    best: dict[int, tuple[int, str, float]] = {}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        feature, effect = int(collection.features[row]), float(effects[row, column])
        if feature not in best or effect > best[feature][2]:
            best[feature] = (feature, known[int(promoted[row, column])], effect)
    return sorted(best.values(), key=lambda found: -found[2])[:top]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
