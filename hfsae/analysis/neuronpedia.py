"""Hand-over to Neuronpedia: a collection in the layout of its bulk exports.

    FOLDER/MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
    FOLDER/MODEL/SOURCE/features/batch-0.jsonl.gz, ...         one line a feature
    FOLDER/MODEL/SOURCE/activations/batch-0.jsonl.gz, ...      one line an example

SOURCE is `LAYER-SET`. The rows' fields are those of Neuronpedia's database as SAEDashboard's `neuronpedia_export.py`
(2025) writes them. Neuronpedia's own client (1.2.1) reads examples by more fields, which are written too. What a
collection does not know stays empty.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.feature_types import Example, Feature
from hfsae.analysis.token_text import TokenTexts
from hfsae.saving import files_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEATURES_A_FILE = 512
_BANDS = 5


def export_neuronpedia(
    collection: FeatureCollection,
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    *,
    model_id: str,
    layer: int,
    source_set: str,
    creator: str,
    creator_id: str = "",
    release: str | None = None,
    description: str = "",
    hub_repo: str | None = None,
    hook_name: str | None = None,
) -> Path:
    """Writes a collection as Neuronpedia's bulk import takes it.

    Args:
        collection: What `collect_features` found.
        tokenizer: The language model's tokenizer.
        folder: Where the model's folder is made.
        model_id: The model's name at Neuronpedia, such as `"gpt2-small"`.
        layer: The SAE's layer.
        source_set: What the set of SAEs is to be called, such as `"res-16k"`.
        creator: Who made the SAE.
        creator_id: Their id at Neuronpedia.
        release: The release that the set belongs to; None takes the set's name.
        description: Of the set.
        hub_repo: Where on the Hub the weights are.
        hook_name: TransformerLens' name of the place, by which the site runs the SAE; None gives the canonical one.

    Returns:
        The source's folder.

    Raises:
        ValueError: If a name cannot be that of a folder.

    Example:
        >>> export_neuronpedia(  # doctest: +SKIP
        ...     collection, tokenizer, "export", model_id="gpt2-small", layer=8, source_set="res-12k", creator="me"
        ... )
    """
    for name in (model_id, source_set):
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a folder: Neuronpedia's names have no slash.")
    source = f"{layer}-{source_set}"
    target = Path(folder) / model_id / source
    now = datetime.now(UTC).isoformat()
    shared = {"creatorId": creator_id, "createdAt": now}
    about = collection.about
    single = {
        "release": {"name": release or source_set, "description": description, "creatorName": creator, **shared},
        "model": {"id": model_id, "displayName": model_id, "displayNameShort": model_id, "instruct": False, **shared},
        "sourceset": {
            "modelId": model_id,
            "name": source_set,
            "description": description,
            "creatorName": creator,
            "releaseName": release or source_set,
            "visibility": "PUBLIC",
            **shared,
        },
        "source": {
            "id": source,
            "modelId": model_id,
            "setName": source_set,
            "visibility": "PUBLIC",
            "dataset": about.dataset,
            "num_tokens_in_prompt": about.context_length,
            "hfRepoId": hub_repo,
            **shared,
        },
    }
    rows = _Rows(
        TokenTexts(tokenizer), {"modelId": model_id, "layer": source, **shared}, hook_name or about.hook_point
    )
    for start in range(0, len(collection), _FEATURES_A_FILE):
        features = [collection[row] for row in range(start, min(start + _FEATURES_A_FILE, len(collection)))]
        name = f"batch-{start // _FEATURES_A_FILE}.jsonl.gz"
        _write(target / "features", name, map(rows.feature, features))
        _write(target / "activations", name, (row for feature in features for row in rows.activations(feature)))
    with files_at_once(target) as beside:
        for name, row in single.items():
            (beside / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return target


class _Rows:
    """Makes the lines of one export."""

    def __init__(self, texts: TokenTexts, shared: dict[str, Any], hook_point: str | None):
        self._texts = texts
        self._shared = shared
        self._hook_point = hook_point

    def feature(self, feature: Feature) -> dict[str, Any]:
        return {
            "index": str(feature.index),
            **self._shared,
            "maxActApprox": feature.maximum,
            "hasVector": False,
            "hookName": self._hook_point,
            "topkCosSimIndices": [neighbour.feature for neighbour in feature.decoder_neighbours],
            "topkCosSimValues": [round(neighbour.cosine, 4) for neighbour in feature.decoder_neighbours],
            "pos_str": [self._text(effect.token_id) for effect in feature.promoted],
            "pos_values": [round(effect.effect, 3) for effect in feature.promoted],
            "neg_str": [self._text(effect.token_id) for effect in feature.suppressed],
            "neg_values": [round(effect.effect, 3) for effect in feature.suppressed],
            "frac_nonzero": feature.density,
            "freq_hist_data_bar_heights": feature.histogram,
            "freq_hist_data_bar_values": [(i + 0.5) * feature.bin_width for i in range(len(feature.histogram))],
            "logits_hist_data_bar_heights": [count for _, count in feature.logit_histogram],
            "logits_hist_data_bar_values": [round(middle, 3) for middle, _ in feature.logit_histogram],
        }

    def activations(self, feature: Feature) -> Iterator[dict[str, Any]]:
        """The top examples, which lie in no bin, then the sample in bands from strong to weak."""
        for rank, example in enumerate(feature.top):
            yield self._activation(feature, f"top {rank}", example, (None, None, None))
        for band, examples in enumerate(feature.quantiles(_BANDS)):
            values = [example.activation for example in examples]
            for rank, example in enumerate(examples):
                bounds = (min(values), max(values), len(examples) / len(feature.sample))
                yield self._activation(feature, f"band {band} {rank}", example, bounds)

    def _activation(
        self, feature: Feature, name: str, example: Example, bounds: tuple[float | None, float | None, float | None]
    ) -> dict[str, Any]:
        strongest = max(range(len(example.activations)), key=example.activations.__getitem__)
        said = f"{self._shared['modelId']} {self._shared['layer']} {feature.index} {name}"
        return {
            "id": "c" + hashlib.sha256(said.encode()).hexdigest()[:24],
            "index": str(feature.index),
            **self._shared,
            "source": self._shared["layer"],
            "tokens": self._texts(example.token_ids),
            "values": [round(value, 3) for value in example.activations],
            "maxValue": example.activations[strongest],
            "maxValueTokenIndex": strongest,
            "minValue": min(example.activations),
            "qualifyingTokenIndex": example.peak,
            "binMin": bounds[0],
            "binMax": bounds[1],
            "binContains": bounds[2],
            "dataIndex": str(example.document),
        }

    def _text(self, token_id: int) -> str:
        return self._texts([token_id])[0]


def _write(folder: Path, name: str, rows: Iterable[dict[str, Any]]) -> None:
    with files_at_once(folder) as beside, gzip.open(beside / name, "wt", encoding="utf-8", compresslevel=5) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
