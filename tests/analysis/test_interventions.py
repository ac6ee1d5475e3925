"""Steering and ablation against plain hooks that add vectors written out longhand."""

import copy

import pytest
import torch
from torch import Tensor

from hfsae import SAE, TopKSAEConfig
from hfsae.analysis import ablate, collect_features, steer
from tests.analysis.tiny import setting, texts
from tests.hooks.families import build, input_ids
from tests.hooks.witness import count_hooks, replaced

PLACE = "model.layers.0.output"
OTHER_PLACE = "model.layers.1.output"
SCALE = 2.5
STRENGTHS = {3: 30.0, 17: -20.0}


def sae_at(hook_point: str = PLACE, **fields) -> SAE:
    torch.manual_seed(3)
    config = TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=hook_point, exclude_special_tokens=False, **fields)
    sae = SAE.from_config(config).eval()
    sae.input_scale.fill_(SCALE)
    return sae


@pytest.fixture(scope="module")
def model():
    return build("llama")


@torch.no_grad()
def logits(model, ids: Tensor, **inputs) -> Tensor:
    return model(ids, use_cache=False, **inputs).logits


def from_column(first: int, delta):
    """A change of x by `delta(x)` from a column on; position 0 is left out."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, first:] += delta(x[:, first:])
        return x

    return change


def added(sae: SAE, strengths=STRENGTHS):
    return lambda x: sum(strength * sae.W_dec[i] / SCALE for i, strength in strengths.items())


def clamped(sae: SAE, strengths=STRENGTHS):
    return lambda x: sum(
        (value - sae.encode(x)[..., i, None]) * sae.W_dec[i] / SCALE for i, value in strengths.items()
    )


# -- one forward pass -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "longhand"), [("add", added), ("clamp", clamped)])
def test_steering_adds_the_features_own_directions(model, mode, longhand):
    sae, ids = sae_at(), input_ids(3, 7)
    with replaced(model, PLACE, from_column(1, longhand(sae))):
        expected = logits(model, ids)
    with steer(model, sae, STRENGTHS, mode=mode) as run:
        steered = logits(model, ids)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
    assert (steered - logits(model, ids)).abs().max() > 0.5 and run.features.shape == (3, 7, 48)


def test_ablation_takes_away_what_the_features_contribute(model):
    sae, ids = sae_at(), input_ids(3, 7)
    with replaced(model, PLACE, from_column(1, clamped(sae, {3: 0.0, 17: 0.0, 20: 0.0}))):
        expected = logits(model, ids)
    with ablate(model, sae, [3, 17, 20]):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_ablation_without_the_error_splices_the_reconstruction(model):
    sae, ids = sae_at(), input_ids(3, 7)

    def reconstruction_without(x: Tensor) -> Tensor:
        features = sae.encode(x)
        features[..., [3, 17, 20]] = 0
        return torch.cat([x[:, :1], sae.decode(features)[:, 1:]], 1)

    with replaced(model, PLACE, reconstruction_without):
        expected = logits(model, ids)
    with ablate(model, sae, torch.tensor([3, 17, 20]), keep_error=False):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_what_changes_nothing_leaves_the_model_as_it_is_to_the_bit(model):
    sae, ids = sae_at(), input_ids(2, 6)
    untouched = logits(model, ids)
    with ablate(model, sae, [0]) as run:
        logits(model, ids)
    silent = int((run.features.to_dense()[:, 1:].amax((0, 1)) == 0).nonzero()[-1])
    for context in (ablate(model, sae, [silent]), steer(model, sae, {silent: 0.0})):
        with context:
            assert torch.equal(logits(model, ids), untouched)
    assert torch.equal(logits(model, ids), untouched)


def test_directions_follow_the_input_transform(model):
    sae, ids = sae_at(input_transform="layer_norm"), input_ids(2, 6)

    def delta(x: Tensor) -> Tensor:
        return (x.std(-1, keepdim=True) + 1e-5) * 4.0 * sae.W_dec[5] / SCALE

    with replaced(model, PLACE, from_column(1, delta)):
        expected = logits(model, ids)
    with steer(model, sae, {5: 4.0}):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_a_transcoders_features_are_written_where_it_writes(model):
    torch.manual_seed(3)
    sae = SAE.from_config(
        TopKSAEConfig(
            d_in=16,
            n_features=48,
            k=6,
            hook_point="model.layers.0.mlp.input",
            target_hook_point="model.layers.0.mlp.output",
            exclude_special_tokens=False,
        )
    ).eval()
    sae.output_scale.fill_(SCALE)
    ids = input_ids(2, 6)
    with replaced(model, "model.layers.0.mlp.output", from_column(1, added(sae))):
        expected = logits(model, ids)
    with steer(model, sae, STRENGTHS):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)


def test_several_saes_act_in_the_order_of_their_contexts(model):
    first, second, ids = sae_at(), sae_at(OTHER_PLACE), input_ids(2, 6)
    with (
        replaced(model, PLACE, from_column(1, added(first))),
        replaced(model, OTHER_PLACE, from_column(1, clamped(second, {8: 25.0}))),
    ):
        expected = logits(model, ids)
    with steer(model, second, {8: 25.0}, mode="clamp"), steer(model, first, STRENGTHS):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    with steer(model, first, {3: 5.0}), steer(model, first, {3: 7.0}):
        twice = logits(model, ids)
    with steer(model, first, {3: 12.0}):
        torch.testing.assert_close(twice, logits(model, ids), rtol=1e-4, atol=1e-4)


def test_the_last_token_is_that_of_each_row_whatever_side_is_padded(model):
    sae, ids = sae_at(exclude_positions=[]), input_ids(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])

    def delta(x: Tensor) -> Tensor:
        change = torch.zeros_like(x)
        change[0, 3] = change[1, 5] = 9.0 * sae.W_dec[3] / SCALE
        return change

    with replaced(model, PLACE, from_column(0, delta)):
        expected = logits(model, ids, attention_mask=mask)
    with steer(model, sae, {3: 9.0}, positions="last"):
        torch.testing.assert_close(logits(model, ids, attention_mask=mask), expected, rtol=1e-4, atol=1e-4)


def test_left_out_tokens_and_padding_stay_as_they_are(model):
    torch.manual_seed(3)
    sae = SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=PLACE)).eval()
    ids = torch.tensor([[9, 1, 8, 0]])
    mask = torch.tensor([[1, 1, 1, 0]])

    def delta(x: Tensor) -> Tensor:
        return torch.tensor([[0.0], [0.0], [1.0], [0.0]]) * 30.0 * sae.W_dec[3]

    with replaced(model, PLACE, from_column(0, delta)):
        expected = logits(model, ids, attention_mask=mask)
    with steer(model, sae, {3: 30.0}):
        torch.testing.assert_close(logits(model, ids, attention_mask=mask), expected, rtol=1e-4, atol=1e-4)


def test_strengths_may_be_relative_to_the_largest_activation():
    sae, model, tokenizer = setting()
    collection = collect_features(sae, model, tokenizer, texts(), disable_tqdm=True)
    feature = max(collection, key=lambda f: f.maximum)
    ids = torch.tensor([[3, 4, 5]])
    with steer(model, sae, {feature.index: 2 * feature.maximum}):
        expected = logits(model, ids)
    for maxima in (collection, {feature.index: feature.maximum}):
        with steer(model, sae, {feature.index: 2}, maxima=maxima):
            torch.testing.assert_close(logits(model, ids), expected)
    with pytest.raises(ValueError, match="maxima does not know feature 1"):
        with steer(model, sae, {1: 2}, maxima={}):
            pass
    with pytest.raises(ValueError, match=r"maximum 0\.0.* name a feature that fires, or .* units of activation"):
        with steer(model, sae, {1: 2}, maxima={1: 0.0}):
            pass


# -- generate ---------------------------------------------------------------------------------------------------------
GENERATE = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "beam search": {"do_sample": False, "num_beams": 3},
}
FIRST_COLUMN = {"all": 1, "last": 4, "generated": 5}


def generated(model, ids: Tensor, **options) -> list[list[int]]:
    torch.manual_seed(0)
    mask = options.pop("attention_mask", torch.ones_like(ids))
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0, **options}
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("way", "positions", "use_cache"),
    [
        *((way, "generated", True) for way in GENERATE),
        ("beam search", "generated", False),
        ("greedy", "all", True),
        # Without a cache each pass begins anew, and only its very last token is the last one.
        ("greedy", "last", True),
    ],
)
def test_generate_is_steered_as_by_a_plain_hook_on_the_whole_sequence(model, way, positions, use_cache):
    sae, ids, options = sae_at(), input_ids(2, 5), GENERATE[way]
    with replaced(model, PLACE, from_column(FIRST_COLUMN[positions], added(sae))):
        expected = generated(model, ids, use_cache=False, **options)
    with steer(model, sae, STRENGTHS, positions=positions):
        assert generated(model, ids, use_cache=use_cache, **options) == expected
        assert generated(model, ids, use_cache=use_cache, **options) == expected  # the second prompt is a prompt again
    assert expected != generated(model, ids, **options)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
def test_rows_of_a_batch_with_left_padding_are_steered_as_alone(model, positions):
    sae = sae_at()
    rows = [input_ids(1, 3), input_ids(1, 6)]
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), rows[0]], 1), rows[1]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    with steer(model, sae, STRENGTHS, positions=positions):
        alone = [generated(model, row)[0] for row in rows]
        assert generated(model, padded, attention_mask=mask) == alone


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "mamba", "qwen3-next"])
def test_every_family_is_steered_in_generate(family):
    model = build(family)
    sae, ids = sae_at("resid_post.0"), input_ids(2, 5)
    with steer(model, sae, STRENGTHS, positions="generated"):
        cached, whole = (generated(model, ids, do_sample=False, use_cache=flag) for flag in (True, False))
    assert cached == whole


def test_ablation_works_in_generate(model):
    sae, ids = sae_at(), input_ids(2, 5)
    with replaced(model, PLACE, from_column(1, clamped(sae, dict.fromkeys(range(40), 0.0)))):
        expected = generated(model, ids, use_cache=False, do_sample=False)
    with ablate(model, sae, list(range(40))):
        assert generated(model, ids, do_sample=False) == expected


# -- what cannot be ---------------------------------------------------------------------------------------------------
def test_no_hook_stays_behind_even_after_an_error(model):
    before = count_hooks(model)
    with pytest.raises(ZeroDivisionError), steer(model, sae_at(), {3: 1.0}):
        raise ZeroDivisionError
    assert count_hooks(model) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, sae: steer(model, sae, {}), "at least one"),
        (lambda model, sae: steer(model, sae, {48: 1.0}), "indices from 0 to 47"),
        (lambda model, sae: steer(model, sae, {3: 1.0}, mode="set"), "expected one of 'add', 'clamp'"),
        (lambda model, sae: steer(model, sae, {3: 1.0}, positions="first"), "'all', 'last', 'generated'"),
        (lambda model, sae: steer(model, sae, {3: 1.0}, maxima={3: 0.0}), "units of activation"),
        (lambda model, sae: steer(model, sae, {3: float("nan")}), "expected finite numbers"),
        (lambda model, sae: steer(model, sae, {3: 1.0, 4: float("inf")}, mode="clamp"), "expected finite numbers"),
        (lambda model, sae: ablate(model, sae, [3, 3]), "feature 3 is named twice"),
        (lambda model, sae: steer(model, sae, {"3": 1.0}), r"features \['3'\] are texts"),
        (lambda model, sae: steer(model, sae, {3: 1.0}, prompt_length=-2), "prompt_length is -2: expected how many"),
    ],
)
def test_mistakes_are_refused_on_entering(model, call, message):
    before = count_hooks(model)
    with pytest.raises(ValueError, match=message), call(model, sae_at()):
        pass
    assert count_hooks(model) == before


def test_maxima_of_another_sae_are_refused_and_those_of_this_one_in_another_precision_are_not():
    given = setting()
    collection = collect_features(*given, texts(), disable_tqdm=True)
    feature = int(collection.features[collection.statistics.maxima.argmax()])
    torch.manual_seed(9)
    other = SAE.from_config(given.sae.config)
    with (
        pytest.raises(ValueError, match="is of another SAE"),
        steer(given.model, other, {feature: 1.0}, maxima=collection),
    ):
        pass
    half = copy.deepcopy(given.sae).bfloat16()
    with steer(given.model, half, {feature: 1.0}, maxima=collection):
        pass


def test_maxima_of_an_sae_whose_dimensions_have_scales_of_their_own_are_taken():
    sae, model, tokenizer = setting()
    scaled = copy.deepcopy(sae)
    with torch.no_grad():
        scaled.input_scale.data = torch.linspace(0.2, 5.0, 16)
    collection = collect_features(scaled, model, tokenizer, texts(), disable_tqdm=True)
    feature = int(collection.features[collection.statistics.maxima.argmax()])
    with steer(model, scaled, {feature: 1.0}, maxima=collection):
        pass
