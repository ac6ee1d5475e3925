import pytest
import torch
import torch.nn.functional as F

from hfsae.analysis import ablate, feature_effects
from tests.analysis.tiny import setting
from tests.hooks.witness import count_hooks

PROMPT = "w3 w1 w4 w1 w5 w9 w2"


@torch.no_grad()
def logits_without(features: list[int]) -> torch.Tensor:
    sae, model, tokenizer = setting()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    if not features:
        return model(ids).logits[0]
    with ablate(model, sae, features, tokenizer=tokenizer):
        return model(ids).logits[0]


def loss_of(logits: torch.Tensor, target: str | None) -> float:
    _, _, tokenizer = setting()
    if target is not None:
        return float(-logits[-1].log_softmax(-1)[tokenizer(target)["input_ids"][0]])
    return float(F.cross_entropy(logits[:-1], torch.tensor(tokenizer(PROMPT)["input_ids"][1:])))


@pytest.mark.parametrize("target", [None, "w7"])
def test_changes_are_those_of_ablating_each_feature(target):
    sae, model, _ = setting()
    hooks = count_hooks(model)
    effects = feature_effects(*setting(), PROMPT, target=target, n_exact=100, k=3)
    clean = logits_without([])
    assert effects.loss == pytest.approx(loss_of(clean, target), rel=1e-5)
    with torch.no_grad(), sae.attach(model) as run:
        model(setting().tokenizer(PROMPT, return_tensors="pt")["input_ids"])
    active = run.features.to_dense()[0, 1:].amax(0) > 0
    assert {effect.feature for effect in effects.features} <= set(active.nonzero().flatten().tolist())
    for effect in effects.features:
        changed = logits_without([effect.feature])
        assert effect.loss_change == pytest.approx(loss_of(changed, target) - effects.loss, abs=1e-5)
        up = (changed - clean)[-1].topk(3)
        assert [token.effect for token in effect.raised] == pytest.approx(up.values.tolist(), abs=1e-5)
    sizes = [abs(effect.loss_change) for effect in effects.features]
    assert sizes == sorted(sizes, reverse=True)
    assert count_hooks(model) == hooks and all(parameter.grad is None for parameter in model.parameters())


def test_attribution_is_the_slope_of_the_loss_times_the_feature():
    """Against a finite difference: the loss with every value of the feature a little smaller."""
    sae, model, tokenizer = setting()
    effects = feature_effects(*setting(), PROMPT)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]

    def shrunk(feature: int, share: float) -> float:
        def edit(features):
            dense = features.to_dense()
            dense[..., feature] *= 1 - share
            return dense

        with torch.no_grad(), sae.attach(model, splice=True, keep_error=True, edit=edit, tokenizer=tokenizer):
            return loss_of(model(ids).logits[0], None)

    for effect in effects.features[:6]:
        slope = (shrunk(effect.feature, 0.02) - shrunk(effect.feature, -0.02)) / 0.04
        assert effect.attribution == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_only_the_few_that_matter_are_measured():
    effects = feature_effects(*setting(), PROMPT, n_exact=2)
    measured = [effect for effect in effects.features if effect.loss_change is not None]
    others = [abs(effect.attribution) for effect in effects.features if effect.loss_change is None]
    assert len(measured) == 2 and effects.features[:2] == measured and others == sorted(others, reverse=True)
    assert min(abs(effect.attribution) for effect in measured) >= max(others)


def test_a_prompt_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="too few for a loss"):
        feature_effects(*setting(), "w1")
    with pytest.raises(ValueError, match="has no token"):
        feature_effects(*setting(), "w1 w2", target="")
