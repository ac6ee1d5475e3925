"""Features sent to Neuronpedia, with examples, logit effects and labels, as its own client sends them.

The client is `neuronpedia` 1.2.1: `FeatureRequest.upload_batch`, at most 128 features a request. The set of SAEs is
made there first (`SourceSet.new` of the client, or the site). The key comes from the environment, goes into one header
of each request, and is never stored, logged or shown.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hfsae.analysis import Example, Feature, FeatureCollection, TokenTexts
from hfsae.label_file import Label
from hfsae.meaning.posting import Passing, Poster

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEURONPEDIA = "https://neuronpedia.org/api"
NEURONPEDIA_KEY = "NEURONPEDIA_API_KEY"
MOST_AT_ONCE = 128
"""Features that the site takes in one request."""

_BANDS = 5
_TIMEOUT = 120.0


def upload_neuronpedia(
    collection: FeatureCollection,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    model_id: str,
    layer: int,
    source_set: str,
    labels: Mapping[int, Label | str] | None = None,
    first: int = 0,
    batch_size: int = MOST_AT_ONCE,
    url: str = NEURONPEDIA,
    retries: int = 6,
    after_each: Callable[[int], None] | None = None,
) -> int:
    """Uploads a collection to a source that stands at Neuronpedia.

    Args:
        collection: What `collect_features` found.
        tokenizer: The language model's tokenizer.
        model_id: The model's name at Neuronpedia, such as `"gpt2-small"`.
        layer: The SAE's layer.
        source_set: The name of the set of SAEs.
        labels: Explanations by feature, as `read_label_records` gives them.
        first: The row of the collection to begin at; a failure names the one to go on from.
        batch_size: Features in a request, 1 to 128.
        url: The address of the interface.
        retries: How often a request is sent again after a failure that may pass.
        after_each: Is told after each request how many features were sent.

    Returns:
        How many features were sent.

    Raises:
        ValueError: If no key is in the environment, or a number is impossible.
        EndpointError: If the site cannot be reached, or says no.

    Example:
        >>> upload_neuronpedia(  # doctest: +SKIP
        ...     collection, tokenizer, model_id="gpt2-small", layer=8, source_set="res-12k"
        ... )
        12288
    """
    if not 1 <= batch_size <= MOST_AT_ONCE:
        raise ValueError(f"batch_size is {batch_size}; expected 1 to {MOST_AT_ONCE}, which is what the site takes.")
    if not 0 <= first < len(collection):
        raise ValueError(f"first is {first}, and the collection has the rows 0 to {len(collection) - 1}.")
    if not (key := os.environ.get(NEURONPEDIA_KEY, "").strip()):
        raise ValueError(f"there is no key: put the one of your account at Neuronpedia into {NEURONPEDIA_KEY}.")
    rows = _Rows(TokenTexts(tokenizer), dict(labels or {}))
    sent = 0
    for start in range(first, len(collection), batch_size):
        features = [collection[row] for row in range(start, min(start + batch_size, len(collection)))]
        content = {
            "modelId": model_id,
            "source": f"{layer}-{source_set}",
            "features": list(map(rows.feature, features)),
        }
        poster = Poster(
            f"{url.rstrip('/')}/feature/upload-batch",
            retries=retries,
            timeout=_TIMEOUT,
            kept=f"{sent} features were sent; first={start} goes on from there.",
            cure=_cure,
        )
        poster.post(content, ("X-Api-Key", "", key), _read)
        sent += len(features)
        if after_each is not None:
            after_each(sent)
    return sent


class _Rows:
    """Makes what is sent of each feature."""

    def __init__(self, texts: TokenTexts, labels: dict[int, Label | str]):
        self._texts, self._labels = texts, labels

    def feature(self, feature: Feature) -> dict[str, Any]:
        examples = [self._example(example, None) for example in feature.top]
        for band in feature.quantiles(_BANDS):
            values = [example.activation for example in band]
            bounds = (max(values), min(values), len(band) / len(feature.sample)) if values else None
            examples += [self._example(example, bounds) for example in band]
        return {
            "index": feature.index,
            "density": feature.density,
            "activations": examples,
            "explanations": self._explanations(feature.index),
            "topLogits": self._effects(feature.promoted),
            "bottomLogits": self._effects(feature.suppressed),
        }

    def _example(self, example: Example, bounds: tuple[float, float, float] | None) -> dict[str, Any]:
        largest, smallest, share = bounds or (None, None, None)
        return {
            "tokens": self._texts(example.token_ids),
            "values": list(example.activations),
            "quantileMax": largest,
            "quantileMin": smallest,
            "quantileFraction": share,
        }

    def _effects(self, effects: Any) -> list[dict[str, Any]]:
        return [{"token": self._texts([one.token_id])[0], "value": one.effect} for one in effects]

    def _explanations(self, feature: int) -> list[dict[str, Any]]:
        label = self._labels.get(feature)
        if label is None:
            return []
        if isinstance(label, str):
            label = Label(label)
        return [{"text": label.text, "methodName": None, "modelName": label.model}]


def _read(body: bytes) -> None:
    """Whatever the site says of what it took; an empty answer is none."""
    if not body:
        raise Passing("its answer is empty")


def _cure(status: int) -> str:
    if status in (401, 403):
        return f" Only who made the set may upload to it, with the key of {NEURONPEDIA_KEY}."
    if status == 404:
        return " Make the set first (SourceSet.new of the package neuronpedia), and check the model's name."
    return ""
