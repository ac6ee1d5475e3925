"""`diff`: holds the sources of a crosscoder against each other, on a text or on activations of one's own."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.attachment import refuse_swapped
from hfsae.autoencoder.given import refuse_no_sae
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.diffing.classes import Thresholds
from hfsae.diffing.model_diff import ModelDiff
from hfsae.diffing.scaling import DiffSums
from hfsae.evaluation.spliced_model import model_inputs
from hfsae.evaluation.text_batches import Text, counted, read_batches
from hfsae.functional.precision import own_precision
from hfsae.hooks import capture
from hfsae.hooks.quiet import evaluating
from hfsae.hooks.sites import Sites
from hfsae.identity import Identity
from hfsae.in_model import hook_points_of_sources
from hfsae.progress import token_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@own_precision()
def diff(
    sae: SparseAutoencoder,
    model: PreTrainedModel | None = None,
    data: "Text | None" = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    activations: Tensor | Mapping[str, Tensor] | Iterable[Tensor | Mapping[str, Tensor]] | None = None,
    max_tokens: int = 200_000,
    batch_size: int = 16,
    thresholds: Thresholds | None = None,
    dataset: str | None = None,
    disable_tqdm: bool = False,
) -> ModelDiff:
    """Says which features of a crosscoder its sources share, and which one of them has alone.

    Decoder norms say that first. Latent scaling (Minder et al. 2025, arXiv:2504.02922) then unmasks what is false of
    it. It solves least squares exactly, in one pass over the text: see `LatentScaling` and `Thresholds`.

    Args:
        sae: The crosscoder.
        model: Its language model; of several a `SideBySide`, as `sae.load_base_model()` gives it.
        data: Text, as `hfsae.evaluate_sae` takes it.
        tokenizer: For text.
        activations: In place of model and text: rows (N, d_in) of all sources, joined or by source, or batches.
        max_tokens: Tokens of the text to compare on.
        batch_size: Sequences per run of the model.
        thresholds: Where the classes end; None for those of the papers.
        dataset: What to call the text.
        disable_tqdm: Whether to show no progress bar.

    Raises:
        ValueError: If it is no crosscoder, neither text nor activations are given or both, or no token counts.
        HookPointError: If the model lacks a place.

    Example:
        >>> found = diff(sae, sae.load_base_model(), texts, sae.load_tokenizer())  # doctest: +SKIP
        >>> found.counts()["tuned-only"], found.of("tuned-only")[:3]  # doctest: +SKIP
        (12, [401, 17, 230])
    """
    if model is None:
        refuse_no_sae(sae)
    else:
        refuse_swapped(sae, model)
    config: Any = sae.config
    if not config.is_crosscoder or len(config.source_names) < 2:
        raise ValueError("only a crosscoder of several sources is compared: train one with architecture='crosscoder'.")
    if (activations is None) == (model is None or data is None):
        raise ValueError("give a language model with text, or activations of your own.")
    if activations is not None:
        alone = isinstance(activations, Tensor | Mapping)
        rows: Iterator[Any] = iter([activations] if alone else activations)
    else:
        assert model is not None and data is not None
        rows = _read(sae, model, data, tokenizer, max_tokens, batch_size, disable_tqdm)
    sums = DiffSums(sae)  # type: ignore[arg-type]
    for some in rows:
        sums.add(some)
    return ModelDiff(
        list(config.source_names),
        sae.source_norms.detach().float().cpu(),  # type: ignore[attr-defined]
        sums.scaling(),
        sums.firing(),
        sums.n_tokens,
        sums.explained_variance(),
        thresholds or Thresholds(),
        {
            "hook_point": config.hook_point,
            "models": {name: record.get("base_model") for name, record in config.models_by_source.items()},
            "dataset": dataset,
            **Identity.of(sae).record(),
        },
    )


@torch.no_grad()
def _read(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None",
    max_tokens: int,
    batch_size: int,
    disable_tqdm: bool,
) -> Iterator[Tensor]:
    """The joined rows of the tokens that count, batch by batch."""
    places = hook_points_of_sources(sae.config, model)
    configs = {"the crosscoder": sae.config}
    batches = read_batches(data, tokenizer, model, configs, max_tokens=max_tokens, batch_size=batch_size)
    total = sum(int(batch.keep.sum()) for batch in batches)
    sites = Sites.at(model, places)
    with evaluating(model), token_bar("comparing", total, disable=disable_tqdm) as bar:
        for batch in batches:
            with capture(model, sites) as read:
                read.run(**model_inputs(model, batch))
            parts = [counted(read[place], batch, place).to(sae.device) for place in places]
            yield torch.cat(parts, 1)
            bar.update(int(batch.keep.sum()))
