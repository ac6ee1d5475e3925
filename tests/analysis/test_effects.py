import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForMaskedLM

from hfsae import SAE, TopKSAEConfig
from hfsae.analysis import ablate, feature_activations, feature_effects
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


def test_effects_are_the_same_where_gradients_are_off():
    outside = feature_effects(*setting(), PROMPT, n_exact=2)
    with torch.inference_mode():
        assert feature_effects(*setting(), PROMPT, n_exact=2) == outside
        sae = copy.deepcopy(setting().sae)
    with pytest.raises(ValueError, match="weights of the TopKSAE were made inside of torch.inference_mode"):
        feature_effects(sae, *setting()[1:], PROMPT)


def test_a_prompt_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="too few for a loss"):
        feature_effects(*setting(), "w1")
    with pytest.raises(ValueError, match="has no token"):
        feature_effects(*setting(), "w1 w2", target="")
    with pytest.raises(ValueError, match="the prompt has 65 tokens, but the model reads 64: shorten it"):
        feature_effects(*setting(), "w1 " * 65)
    with pytest.raises(ValueError, match="n_exact is -1 and k 5: expected 0 or more"):
        feature_effects(*setting(), "w1 w2", n_exact=-1)


@torch.no_grad()
def test_a_prompt_begins_with_bos_where_the_saes_text_did_as_in_feature_activations():
    """The tokenizer, as that of GPT-2, adds none by itself."""
    sae, model, tokenizer = setting(prepend_bos=True)
    assert tokenizer("w1")["input_ids"] == [2]
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPT)["input_ids"]]])
    effects = feature_effects(sae, model, tokenizer, PROMPT, n_exact=0)
    logits = model(ids).logits[0]
    assert effects.loss == pytest.approx(float(F.cross_entropy(logits[:-1], ids[0, 1:])), rel=1e-5)

    seen = {}
    handle = model.transformer.h[1].register_forward_hook(lambda *call: seen.update(x=call[2]))
    model(ids)
    handle.remove()
    hidden = seen["x"][0] if isinstance(seen["x"], tuple) else seen["x"]
    by_hand = set((sae.encode(hidden[0, 1:]) > 0).any(0).nonzero().flatten().tolist())
    table = feature_activations(sae, model, tokenizer, [PROMPT], list(range(sae.config.n_features)))
    active = {i for i in range(sae.config.n_features) if any(value > 0 for value in table[f"feature_{i}"])}
    assert {effect.feature for effect in effects.features} <= by_hand
    # The last token says nothing about the tokens of the prompt, but about what follows it.
    of_target = feature_effects(sae, model, tokenizer, PROMPT, target="w7", n_exact=0)
    assert {effect.feature for effect in of_target.features} == by_hand == active


def test_a_token_beyond_the_vocabulary_is_named():
    sae, model, tokenizer = setting()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(9)])
    beyond, size = tokenizer.convert_tokens_to_ids("new8"), model.config.vocab_size
    message = rf"token id {beyond} \('new8'\), but the language model knows {size} tokens"
    for prompt, target in (("w1 new8 w2", None), ("w1 w2", "new8")):
        with pytest.raises(ValueError, match=message):
            feature_effects(sae, model, tokenizer, prompt, target=target)


def test_a_model_that_does_not_predict_the_next_token_is_refused():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=44, **sizes, initializer_range=0.5)).eval()
    config = TopKSAEConfig(d_in=16, n_features=40, k=4, hook_point="resid_post.1")
    with pytest.raises(ValueError, match="BertForMaskedLM does not predict the next token"):
        feature_effects(SAE.from_config(config), model, setting().tokenizer, PROMPT)
