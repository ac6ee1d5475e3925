"""`feature_effects`: which features of a prompt matter to what the model says, and how."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.feature_types import TokenEffect
from hfsae.analysis.interventions import ablate
from hfsae.analysis.never_trained import all_but, ruled_out, untrained_tokens
from hfsae.attachment import attach, refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.data import TokenBatch
from hfsae.data.prompts import tokenize
from hfsae.evaluation.predictions import predictions_of
from hfsae.functional import SparseFeatures
from hfsae.functional.gradients import gradients_on, refuse_inference_weights, weights_frozen
from hfsae.functional.precision import own_precision
from hfsae.hooks.devices import input_device
from hfsae.hooks.limits import refuse_too_long, refuse_unknown_ids
from hfsae.hooks.quantised import gradients_reach_through
from hfsae.hooks.quiet import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FeatureEffect:
    """What taking a feature away from a prompt does.

    Attributes:
        feature: Which one.
        attribution: The change of the loss by first-order attribution, Σ over tokens of −∂loss/∂f · f, in nats.
        loss_change: The change of the loss measured by ablating it, in nats; None where it was only attributed.
        raised: Tokens whose logit at the last position rises most without it; empty where only attributed. Tokens that
            the model was never trained on are left out.
        lowered: Tokens whose logit falls most.
    """

    feature: int
    attribution: float
    loss_change: float | None
    raised: list[TokenEffect]
    lowered: list[TokenEffect]


@dataclass(frozen=True)
class FeatureEffects:
    """What the features of a prompt do to the model's loss.

    Attributes:
        loss: Of the untouched model, in nats.
        features: Those measured by ablation first, the largest change of the loss first; then the others by
            attribution.
    """

    loss: float
    features: list[FeatureEffect]


@own_precision()
def feature_effects(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    *,
    target: str | None = None,
    n_exact: int = 10,
    k: int = 5,
) -> FeatureEffects:
    """How loss and logits of a prompt change when each of its features is ablated.

    All active features are ranked with one backward pass (attribution patching; Syed et al. 2023). The few that matter
    most are then ablated one by one, at all tokens, with the SAE's error kept.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        text: The prompt, cut into tokens by `sae.tokenize`.
        target: What is to follow the prompt; the loss is that of its first token. None takes the mean loss of the
            prompt's own tokens.
        n_exact: How many features are measured by ablation.
        k: Tokens on each side whose logits are given.

    Raises:
        ValueError: If the prompt is too short to have a loss, or too long for the model. Likewise if a token is none
            of the model's, or a number is negative. Likewise if the SAE does not fit the model, or the model does not
            predict the next token (BERT, ESM-2). Also if weights were made inside of `torch.inference_mode`, which
            torch does not differentiate, or if quantised layers let no gradients through.
        HookPointError: If the model lacks the SAE's hook point.

    Example:
        >>> effects = feature_effects(sae, model, tokenizer, "for i in", target=" range")  # doctest: +SKIP
        >>> effects.features[0]  # doctest: +SKIP
        FeatureEffect(feature=1203, attribution=2.1, loss_change=2.6, ...)
    """
    refuse_swapped(sae, model)
    if n_exact < 0 or k < 0:
        raise ValueError(f"n_exact is {n_exact} and k {k}: expected 0 or more.")
    for module in (model, sae):
        refuse_inference_weights(module)
    ids = tokenize(text, tokenizer, prepend_bos=sae.config.prepend_bos)["input_ids"]
    wanted = _target_id(tokenizer, target)
    for asked in (ids, torch.tensor([] if wanted is None else [wanted])):
        refuse_unknown_ids(asked, model, tokenizer)
    refuse_too_long(ids.shape[1], model)
    ids = ids.to(input_device(model))
    if ids.shape[1] < (2 if wanted is None else 1):
        raise ValueError(f"the prompt {text!r} has {ids.shape[1]} tokens: too few for a loss.")
    with evaluating(model):
        _refuse_other_losses(model, ids)
        logits, loss, attributions = _attribute(sae, model, tokenizer, ids, wanted)
        unnamed = torch.cat([untrained_tokens(model), ruled_out(logits[-1:])])
        tokens = all_but(logits.shape[1], unnamed).to(logits.device)
        order = attributions.abs().argsort(descending=True)
        order = order[attributions[order] != 0].tolist()
        measured = []
        for feature in order[:n_exact]:
            with torch.no_grad(), ablate(model, sae, [feature], tokenizer=tokenizer):
                changed = model(input_ids=ids, use_cache=False).logits[0].float()
            change = (changed - logits)[-1]
            measured.append(
                FeatureEffect(
                    feature=feature,
                    attribution=float(attributions[feature]),
                    loss_change=float(_loss(changed, ids[0], wanted)) - loss,
                    raised=_strongest(change, tokens, k, largest=True),
                    lowered=_strongest(change, tokens, k, largest=False),
                )
            )
    measured.sort(key=lambda effect: -abs(effect.loss_change or 0.0))
    others = [FeatureEffect(feature, float(attributions[feature]), None, [], []) for feature in order[n_exact:]]
    return FeatureEffects(loss, measured + others)


def _refuse_other_losses(model: PreTrainedModel, ids: Tensor) -> None:
    predictions = predictions_of(model, TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool)))
    if predictions.of != "next":
        raise ValueError(
            f"{type(model).__name__} does not predict the next token, whose loss this is about: take a causal "
            "language model, or measure with evaluate_sae."
        )


def _attribute(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    ids: Tensor,
    wanted: int | None,
) -> tuple[Tensor, float, Tensor]:
    """The untouched logits (seq, vocabulary), the loss, and its change by first order for every feature."""
    leaves: list[SparseFeatures] = []

    def as_leaf(features: SparseFeatures) -> SparseFeatures:
        values = features.entry_values.detach().requires_grad_()
        leaves.append(SparseFeatures(features.pattern, values, features.leading_shape))
        return leaves[-1]

    with (
        gradients_on(),
        weights_frozen(model),  # what lies before the SAE then needs no gradients
        gradients_reach_through(model),
        attach(model, sae, splice=True, keep_error=True, edit=as_leaf, tokenizer=tokenizer),
    ):
        ids = ids.clone()  # ids that were made in inference mode cannot be differentiated past
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        loss = _loss(logits, ids[0], wanted)
        (leaf,) = leaves
        (gradient,) = torch.autograd.grad(loss, leaf.entry_values)
    change = SparseFeatures(leaf.pattern, -gradient * leaf.entry_values.detach(), leaf.leading_shape)
    attributions = torch.zeros(leaf.n_features, dtype=torch.float32)
    attributions.index_add_(0, change.indices.flatten().cpu(), change.values.flatten().float().cpu())
    return logits.detach(), float(loss.detach()), attributions


def _loss(logits: Tensor, ids: Tensor, wanted: int | None) -> Tensor:
    if wanted is None:
        return F.cross_entropy(logits[:-1], ids[1:])
    return F.cross_entropy(logits[-1:], torch.tensor([wanted], device=logits.device))


def _target_id(tokenizer: "PreTrainedTokenizerBase", target: str | None) -> int | None:
    if target is None:
        return None
    ids: list[int] = tokenizer(target, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
    if not ids:
        raise ValueError(f"the target {target!r} has no token.")
    return ids[0]


def _strongest(change: Tensor, tokens: Tensor, k: int, *, largest: bool) -> list[TokenEffect]:
    """Of some tokens those whose logits change most."""
    best = change[tokens].topk(min(k, len(tokens)), largest=largest)
    return [TokenEffect(*pair) for pair in zip(tokens[best.indices].tolist(), best.values.tolist(), strict=True)]
