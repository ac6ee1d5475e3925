"""`trace`: the attribution graph of a prompt."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hfsae.analysis.token_text import TokenTexts
from hfsae.autoencoder.given import refuse_unnamed
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.circuits.edges import AllFeatures, EdgeRows, trace_rows
from hfsae.circuits.graph import Exactness, Graph
from hfsae.circuits.nodes import Node, source_nodes
from hfsae.circuits.replacement import LocalReplacement
from hfsae.circuits.targets import Targets, choose_targets, logit_factor
from hfsae.data.prompts import tokenize
from hfsae.functional.gradients import gradients_on
from hfsae.functional.precision import own_default_device
from hfsae.hub.hub_ids import without_folders
from hfsae.identity import weights_sha256
from hfsae.progress import bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@own_default_device()
@gradients_on()
def trace(
    model: nn.Module,
    saes: Mapping[str, SparseAutoencoder],
    prompt: str | Sequence[int] | Tensor,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_features: int = 2000,
    max_logits: int = 10,
    min_probability: float = 0.95,
    targets: Sequence[str | int] | None = None,
    contrast: tuple[str | int, str | int] | None = None,
    batch_size: int = 64,
    offload: str | os.PathLike | None = None,
    disable_tqdm: bool = False,
) -> Graph:
    """Explains what a model says after a prompt, by the features that make it.

    For this prompt the model is made linear: attention patterns and denominators of norms are held, and MLPs are cut.
    Where SAEs write stands the sum of features and error that the model had. An edge is what a feature, an error or an
    embedding adds to a feature's value or to a logit, with nothing between them. The edges into a node and what biases
    add make its value exactly. As in Ameisen et al. 2025, "Circuit tracing".

    Args:
        model: A causal LM whose attention goes through transformers' attention interface, or a wrapper around one.
            It is left as it was. In half precision a copy in float32 is traced.
        saes: The SAEs by name: a transcoder for every MLP (`load_saes` of a set), or SAEs of the residual stream, or
            both. An MLP that none of them writes counts as error.
        prompt: A text, or token ids.
        tokenizer: The model's; needed for a text. Without it the first SAE's is loaded.
        max_features: How many features become nodes, those with most influence.
        max_logits: The most probable tokens that are explained, so many at most.
        min_probability: As many of them as together have this probability.
        targets: These tokens instead.
        contrast: Two tokens: explains the difference of their logits.
        batch_size: Nodes that are traced in one backward pass; memory grows with it.
        offload: A folder for edges while they are traced: a file there that is gone afterwards. None keeps them in
            memory, which takes `max_features` times the number of features that fire.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        The graph, which keeps the model for `intervene` and `validate`.

    Raises:
        ValueError: If the model cannot be made linear, with the reason. Likewise if an SAE does not fit it, the prompt
            is longer than its context, or a target is no token. Likewise inside of `torch.autocast`, and for weights
            that were made inside of `torch.inference_mode`. All before anything is traced.
        HookPointError: If the model lacks the place of an SAE.

    Example:
        >>> saes = hfsae.load_saes("runs/transcoder_set")  # doctest: +SKIP
        >>> graph = hfsae.trace(model, saes, "def main(self", tokenizer=tokenizer)  # doctest: +SKIP
        >>> graph.replacement_score  # doctest: +SKIP
        0.61
    """
    if max_features < 1 or batch_size < 1:
        raise ValueError(f"max_features={max_features} and batch_size={batch_size}: both must be 1 or more.")
    _refuse_untraceable(saes)
    if offload is not None and not Path(offload).is_dir():
        raise ValueError(f"offload={os.fspath(offload)!r} is no folder: name one that has room for edges.")
    ids, tokenizer = _ids(prompt, saes, tokenizer)
    replacement = LocalReplacement(model, saes, ids, tokenizer)
    chosen = choose_targets(
        replacement,
        max_logits=max_logits,
        min_probability=min_probability,
        targets=targets,
        contrast=contrast,
        tokenizer=tokenizer,
    )
    for note in replacement.notes:
        logger.info(note)
    features = AllFeatures.of(replacement)
    total = min(max_features, len(features))
    texts = TokenTexts(tokenizer)(ids.tolist()) if tokenizer is not None else [str(token) for token in ids.tolist()]
    with ExitStack() as stack:
        progress = stack.enter_context(bar("tracing", total, unit="features", disable=disable_tqdm))
        folder = None if offload is None else stack.enter_context(TemporaryDirectory(dir=offload))
        rows = trace_rows(
            *(replacement, features, chosen),
            max_features=total,
            batch_size=batch_size,
            progress=progress,
            offload=None if folder is None else Path(folder) / "edges",
        )
        nodes = _nodes(replacement, features, rows, chosen, texts, tokenizer)
        edges, left_out, sums = _square(rows, len(features), len(nodes))
    constants = torch.zeros(len(nodes), dtype=edges.dtype)
    constants[: len(rows.features)] = rows.constants[: len(rows.features)]
    constants[-len(chosen) :] = rows.constants[len(rows.features) :]
    return Graph(
        prompt=prompt if isinstance(prompt, str) else "".join(texts),
        token_ids=ids.tolist(),
        tokens=texts,
        nodes=nodes,
        edges=edges,
        constants=constants,
        left_out=left_out,
        exactness=_exactness(replacement, features, rows, chosen, sums),
        n_active=len(features),
        about=_about(saes, chosen),
        notes=list(replacement.notes),
        circuit=replacement,
    )


def why_untraceable(
    model: nn.Module, saes: Mapping[str, SparseAutoencoder], tokenizer: "PreTrainedTokenizerBase"
) -> str | None:
    """Why a model with these SAEs gives no graph of any prompt, in words; None where it gives one.

    What `trace` does before it traces is tried on two tokens.

    Args:
        model: The language model.
        saes: The SAEs by name.
        tokenizer: The model's.
    """
    special = set(tokenizer.all_special_ids)
    two = [token for token in range(len(special) + 2) if token not in special][:2]
    try:
        _refuse_untraceable(saes)
        LocalReplacement(model, saes, torch.tensor(two), tokenizer)
    except (TypeError, ValueError) as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        # A CPU without memory raises a RuntimeError, and only CUDA's has a class of its own.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return "the memory is too small: a model in half precision is traced in a copy in float32."
    return None


def _refuse_untraceable(saes: Mapping[str, SparseAutoencoder]) -> None:
    refuse_unnamed(saes)
    if not saes:
        raise ValueError("there is no SAE to trace with: pass some by name, such as load_saes(folder).")
    for name, sae in saes.items():
        if not isinstance(sae, SparseAutoencoder):
            raise TypeError(
                f"{name!r} is a {type(sae).__name__}, no SAE. A cross-layer transcoder is given whole, not by layer."
            )
        if len(sae.config.input_widths) > 1 and not sae.config.is_cross_layer:
            raise ValueError(
                f"{name!r} is a crosscoder, whose features are made of several places at once: circuits are traced "
                "with transcoders, cross-layer transcoders, and SAEs of one place each."
            )


def _ids(
    prompt: str | Sequence[int] | Tensor,
    saes: Mapping[str, SparseAutoencoder],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> tuple[Tensor, "PreTrainedTokenizerBase | None"]:
    if not isinstance(prompt, str):
        ids = torch.as_tensor(prompt)
        if ids.numel() != ids.shape[-1:].numel() or (ids.numel() and ids.is_floating_point()):
            raise ValueError(
                f"the prompt is {tuple(ids.shape)} of {ids.dtype}: a circuit is of one prompt, (S,) token ids."
            )
        return ids.flatten().long(), tokenizer
    first: Any = next(iter(saes.values()))
    tokenizer = tokenizer or cast("PreTrainedTokenizerBase", first.load_tokenizer())
    return tokenize(prompt, tokenizer, prepend_bos=first.config.prepend_bos)["input_ids"][0], tokenizer


def _nodes(
    replacement: LocalReplacement,
    features: AllFeatures,
    rows: EdgeRows,
    targets: Targets,
    texts: list[str],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> list[Node]:
    """The features that were traced, then errors place by place, embeddings and logits."""
    nodes = source_nodes(replacement, features, texts, rows.features)
    words = TokenTexts(tokenizer) if tokenizer is not None else (lambda tokens: [str(token) for token in tokens])
    values = (targets.vectors @ replacement.hidden + targets.constants).tolist()
    for token, against, value, weight in zip(
        targets.tokens, targets.against, values, targets.weights.tolist(), strict=True
    ):
        label = words([token])[0] + ("" if against is None else f" − {words([against])[0]}")
        nodes.append(
            Node("logit", len(texts) - 1, value, token=token, against=against, probability=weight, label=label)
        )
    return nodes


def _square(rows: EdgeRows, n_features: int, n_nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Edges (n, n) between nodes, what features that are no nodes add to each (n,), and the sum of all of it (n,)."""
    edges = rows.into_logits.new_zeros(n_nodes, n_nodes)
    left_out, sums = (rows.into_logits.new_zeros(n_nodes) for _ in range(2))
    kept = torch.cat([rows.features, torch.arange(n_features, rows.into_logits.shape[1])])
    last = n_nodes - len(rows.into_logits)
    for part, made in (*rows.parts(), (torch.arange(last, n_nodes), rows.into_logits)):
        among = made[:, kept]
        edges[part, :last] = among
        sums[part] = made.sum(1)
        left_out[part] = sums[part] - among.sum(1)
    return edges, left_out, sums


@torch.no_grad()
def _exactness(
    replacement: LocalReplacement, features: AllFeatures, rows: EdgeRows, targets: Targets, sums: Tensor
) -> Exactness:
    head = replacement.model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    factor = logit_factor(replacement)
    own, rebuilt = (factor * head.forward(state) for state in (replacement.own_hidden, replacement.rebuilt_hidden))
    n = len(rows.features)
    of_features = sums[:n] + rows.constants[:n] - features.values.cpu()[rows.features]
    values = (targets.vectors @ replacement.hidden + targets.constants).cpu()
    of_targets = sums[-len(targets) :] + rows.constants[n:] - values
    return Exactness(
        logits=float((own - rebuilt).abs().max()),
        features=_relative(of_features, features.values.cpu()[rows.features]),
        targets=_relative(of_targets, values),
    )


def _relative(differences: Tensor, values: Tensor) -> float:
    sizes = values.abs()
    return float((differences.abs() / sizes.clamp(min=float(sizes.mean()))).max()) if len(values) else 0.0


def _about(saes: Mapping[str, SparseAutoencoder], targets: Targets) -> dict[str, Any]:
    base = next((sae.config.base_model for sae in saes.values() if sae.config.base_model), None)
    return {
        "base_model": None if base is None else without_folders(base),
        "saes": {name: weights_sha256(sae) for name, sae in saes.items()},
        "features_per_layer": {
            name: sae.config.features_per_layer for name, sae in saes.items() if sae.config.is_cross_layer
        },
        "values": targets.values,
    }
