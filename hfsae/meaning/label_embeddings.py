"""Labels found by what they mean and not by their words: an encoder's embeddings of them, compared by cosine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from hfsae.hooks.limits import context_length_of
from hfsae.meaning.finding import refuse_no_features

_MODES = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
_MODULES = ("Transformer", "Pooling", "Normalize")


class Embedder:
    """Embeds texts with an encoder of transformers, or the folder of one of sentence-transformers.

    A folder of sentence-transformers says how tokens are pooled (`1_Pooling/config.json`). Otherwise the last layer's
    vectors are averaged. Embeddings have length 1.

    Args:
        name: Hub id or folder.
        revision: Commit, branch or tag on the Hub.
        batch_size: Texts at once.

    Raises:
        OSError: If there is no such model.
        ValueError: If sentence-transformers would do more to the embeddings than to pool them.

    Example:
        >>> embed = Embedder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> embed(["a cat", "a kitten"]).shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    def __init__(self, name: str, *, revision: str | None = None, batch_size: int = 32):
        modules = _json(name, "modules.json", revision) or []
        kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
        if other := sorted(set(kinds) - set(_MODULES)):
            raise ValueError(
                f"{name} has the module {other[0]} behind its encoder, which is not run here; expected an encoder "
                f"whose modules are {', '.join(_MODULES)}."
            )
        self._mode = _pooling(name, modules, revision)
        self._tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        self._model = AutoModel.from_pretrained(name, revision=revision).eval()
        self._longest = context_length_of(self._model)
        self._batch_size = batch_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 (texts, d)."""
        found = [
            self._embed(texts[start : start + self._batch_size]) for start in range(0, len(texts), self._batch_size)
        ]
        return torch.cat(found) if found else torch.zeros(0, self._model.config.hidden_size, dtype=torch.float32)

    def _embed(self, texts: Sequence[str]) -> Tensor:
        rows = [self._tokenizer(text, verbose=False)["input_ids"][: self._longest] for text in texts]
        if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
            raise ValueError(f"{empty[0]!r} has no token.")
        # Not every tokenizer has a padding token, and what is padded is masked.
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return normalize(pooled(hidden, mask.bool(), self._mode), dim=-1)


def pooled(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector a text: float32 (B, d).

    Args:
        hidden: (B, T, d).
        mask: bool (B, T), the tokens of each text, which begin in the first column.
        mode: `"cls_token"`, `"mean_tokens"`, `"max_tokens"` or `"lasttoken"`.
    """
    if mode == "cls_token":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    if mode == "max_tokens":
        return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def nearest_labels(
    labels: Mapping[int, str], words: str, embed: Embedder, *, top: int = 10
) -> list[tuple[int, float]]:
    """The features whose labels mean most nearly what some words do, with the cosine of the embeddings.

    Args:
        labels: Labels by feature.
        words: What is looked for.
        embed: The encoder.
        top: How many features.

    Raises:
        ValueError: If `top` is less than 1.
    """
    refuse_no_features(top)
    if not labels:
        return []
    features = list(labels)
    cosines = embed([labels[feature] for feature in features]) @ embed([words])[0]
    order = cosines.argsort(descending=True, stable=True)[:top].tolist()
    return [(features[row], float(cosines[row])) for row in order]


def _pooling(name: str, modules: Sequence[Mapping[str, Any]], revision: str | None) -> str:
    folder = next((str(one["path"]) for one in modules if str(one["type"]).endswith("Pooling")), None)
    if folder is None:
        return "mean_tokens"
    config = _json(name, f"{folder}/config.json", revision) or {}
    chosen = [mode for mode in _MODES if config.get(f"pooling_mode_{mode}")]
    others = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or len(others) != 1:
        raise ValueError(f"{name} pools tokens by {others or 'nothing'}; expected one of {', '.join(_MODES)}.")
    return chosen[0]


def _json(name: str, file: str, revision: str | None) -> Any:
    """A file of the model; None where it has none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    try:
        return json.loads(Path(hf_hub_download(name, file, revision=revision)).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        return None
