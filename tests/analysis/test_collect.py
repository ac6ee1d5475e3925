"""The pass, against a loop over tokens and features."""

import copy
from collections import Counter

import pytest
import torch
from datasets import Dataset

from hfsae import SAE, TopKSAEConfig
from hfsae.analysis import FeatureCollection, collect_features, find_max_activating_examples
from hfsae.analysis.collect import _ExampleKeeper
from hfsae.analysis.contexts import NO_TOKEN
from tests.analysis.tiny import N_FEATURES, Setting, read_longhand, setting, texts
from tests.hooks.witness import count_hooks

BEFORE, AFTER = 3, 2
OPTIONS = {"n_top": 4, "n_sample": 6, "before": BEFORE, "after": AFTER, "n_bins": 8, "disable_tqdm": True}


@pytest.fixture(scope="module")
def collection() -> FeatureCollection:
    return collect_features(*setting(), texts(), batch_size=4, **OPTIONS)


@pytest.fixture(scope="module")
def tokens():
    return read_longhand(texts(), setting())


def context(token) -> tuple:
    return tuple(token.piece[max(0, token.column - BEFORE) : token.column + 1])


def test_statistics_are_sums_over_the_tokens_that_count(collection, tokens):
    dense = torch.stack([token.features for token in tokens])
    sums = collection.statistics
    assert collection.about.n_tokens == len(tokens)
    assert torch.equal(sums.tokens_firing, (dense > 0).sum(0))
    torch.testing.assert_close(sums.totals, dense.double().sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.maxima, dense.amax(0))
    assert torch.equal(sums.counts.sum(1), sums.tokens_firing)
    torch.testing.assert_close(collection.densities, (dense > 0).double().mean(0))


def longhand_top(tokens, feature: int) -> list:
    """Of each piece the best token, of each context the best piece."""
    best: dict = {}
    for token in tokens:
        key = token.document, token.position - token.column
        value = float(token.features[feature])
        if value > 0 and (key not in best or value > float(best[key].features[feature]) + 1e-6):
            best[key] = token
    ordered = sorted(best.values(), key=lambda t: (-round(float(t.features[feature]), 4), t.document, t.position))
    seen, kept = set(), []
    for token in ordered:
        if context(token) not in seen:
            seen.add(context(token))
            kept.append(token)
    return kept[:4]


def test_top_examples_are_the_strongest_tokens_with_their_windows(collection, tokens):
    compared = 0
    for feature in collection:
        expected = longhand_top(tokens, feature.index)
        values = [round(float(token.features[feature.index]), 4) for token in expected]
        assert [example.activation for example in feature.top] == pytest.approx(values, abs=1e-3)
        if len(set(values)) < len(values):
            continue  # equal up to float noise: either order is right
        for example, token in zip(feature.top, expected, strict=True):
            compared += 1
            start = max(0, token.column - BEFORE)
            window = token.piece[start : token.column + AFTER + 1]
            assert (example.document, example.position) == (token.document, token.position)
            assert example.token_ids == window and example.peak == token.column - start
            around = {(t.document, t.position): t for t in tokens}
            for offset, value in enumerate(example.activations):
                beside = around.get((token.document, token.position - token.column + start + offset))
                known = 0.0 if beside is None else float(beside.features[feature.index])
                assert value == pytest.approx(known, abs=1e-4)
            best = token.features.topk(4)
            assert set(example.partners) == set(best.indices[best.values > 0].tolist())
    assert compared > 50


def test_the_sample_holds_each_context_once_and_all_where_there_is_room(tokens):
    collection = collect_features(*setting(), texts(), **OPTIONS | {"n_sample": 400})
    for feature in collection:
        firing = {context(token) for token in tokens if token.features[feature.index] > 0}
        assert len(feature.sample) == len(firing)
        values = [example.activation for example in feature.sample]
        assert values == sorted(values, reverse=True)
        bands = feature.quantiles(3)
        assert [example for band in bands for example in band] == feature.sample


def test_a_small_sample_is_drawn_uniformly_over_seeds(tokens):
    wanted = max(range(N_FEATURES), key=lambda i: sum(float(token.features[i]) > 0 for token in tokens))
    contexts = {context(token) for token in tokens if token.features[wanted] > 0}
    drawn: Counter = Counter()
    for seed in range(20):
        (feature,) = collect_features(*setting(), texts(), features=[wanted], seed=seed, **OPTIONS)
        drawn.update((example.document, example.position) for example in feature.sample)
    expected = 20 * 6 / len(contexts)
    assert len(drawn) > min(len(contexts), 60) * 0.5 and max(drawn.values()) < expected + 6 * expected**0.5 + 4


def equal(one: FeatureCollection, other: FeatureCollection) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(
        torch.allclose(mine[name].double(), theirs[name].double(), rtol=1e-4, atol=1e-4) for name in mine
    )


def test_parts_merged_are_the_whole(collection):
    parts = [collect_features(*setting(), texts(), rank=rank, world_size=3, **OPTIONS) for rank in range(3)]
    assert equal(FeatureCollection.merge(parts), collection)


def test_parts_of_different_makings_are_not_merged(collection):
    others = [
        collect_features(*setting(), texts(), **OPTIONS | {"before": 2}),
        collect_features(*setting(), texts(), **OPTIONS, features=[1, 2]),
    ]
    for other, field in zip(others, ("before", "features"), strict=True):
        with pytest.raises(ValueError, match=f"differ in {field}"):
            FeatureCollection.merge([collection, other])


def test_batches_and_streams_change_nothing(collection):
    stream = Dataset.from_dict({"text": texts()}).to_iterable_dataset()
    assert equal(collect_features(*setting(), stream, batch_size=7, **OPTIONS), collection)


def test_chosen_features_are_those_of_the_whole(collection):
    some = collect_features(*setting(), texts(), features=[7, 3], **OPTIONS)
    assert [feature.index for feature in some] == [7, 3]
    for feature in some:
        whole = collection.of(feature.index)
        assert feature.histogram == whole.histogram and feature.density == whole.density
        assert [e.position for e in feature.top] == [e.position for e in whole.top]


def test_the_best_examples_of_one_feature(collection):
    feature = max(collection, key=lambda f: f.tokens_firing)
    found = find_max_activating_examples(*setting(), texts(), feature.index, n_examples=2)
    assert [(e.document, e.position) for e in found] == [(e.document, e.position) for e in feature.top[:2]]


def test_the_pass_ends_when_enough_tokens_were_read(collection):
    short = collect_features(*setting(), texts(), max_tokens=50, batch_size=2, **OPTIONS)
    assert 50 <= short.about.n_tokens < 50 + 2 * 12 < collection.about.n_tokens


def test_the_model_comes_back_as_it_was():
    _, model, _ = setting()
    before = count_hooks(model), model.training
    model.train()
    collect_features(*setting(), texts(), **OPTIONS)
    assert model.training
    model.train(before[1])
    assert count_hooks(model) == before[0]


def test_in_bfloat16_features_are_those_of_the_model_loaded_in_it(collection):
    sae, model, tokenizer = setting()
    narrow = copy.deepcopy(model).bfloat16()
    found = collect_features(sae, model, tokenizer, texts(), bf16=True, **OPTIONS)
    of_loaded = collect_features(sae, narrow, tokenizer, texts(), **OPTIONS)
    for one, other in zip([*found.statistics, *found.top], [*of_loaded.statistics, *of_loaded.top], strict=True):
        assert torch.equal(one, other)
    dense = torch.stack([token.features for token in read_longhand(texts(), Setting(sae, narrow, tokenizer))])
    assert torch.equal(found.statistics.tokens_firing, (dense > 0).sum(0))
    assert not torch.equal(found.statistics.totals, collection.statistics.totals)
    assert found.about.model_precision == "bfloat16" and collection.about.model_precision == "float32"
    assert model.dtype == torch.float32
    with pytest.raises(ValueError, match="differ in model_precision"):
        FeatureCollection.merge([collection, found])


def test_a_feature_that_never_fires_has_no_examples():
    given = setting()
    (dead,) = [f for f in collect_features(*given, ["w1 w2"], **OPTIONS) if f.index == _silent(given)]
    assert dead.tokens_firing == 0 and dead.top == dead.sample == dead.co_firing == [] and sum(dead.histogram) == 0


def _silent(given) -> int:
    (token,) = read_longhand(["w1 w2"], given)
    return int((token.features == 0).nonzero()[0])


def test_what_cannot_be_collected_is_refused_before_the_model_runs():
    with pytest.raises(ValueError, match="n_top"):
        collect_features(*setting(), texts(), n_top=0)
    with pytest.raises(ValueError, match="expected indices"):
        collect_features(*setting(), texts(), features=[N_FEATURES])
    # One of its rows would say that it never fires.
    with pytest.raises(ValueError, match="feature 3 is named twice"):
        collect_features(*setting(), texts(), features=[3, 5, 3])
    with pytest.raises(ValueError, match="no token that counts"):
        collect_features(*setting(), [""], disable_tqdm=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_gives_no_finite_numbers_is_refused(value: float):
    sae, model, tokenizer = setting()
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[2] = value
    with pytest.raises(ValueError, match=r"activations at transformer\.h\.1\.output hold NaN or infinity in"):
        collect_features(sae, model, tokenizer, texts(), disable_tqdm=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbours": -1}, "n_neighbours is -1: expected 0 or more"),
        ({"n_tokens_promoted": -1}, "n_tokens_promoted is -1"),
        ({"world_size": 0}, "rank is 0 of world_size=0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size=2"),
        ({"rank": -1, "world_size": 2}, "rank is -1 of world_size=2"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_the_model_runs(options: dict, message: str):
    runs = []
    model = setting().model
    seen = model.register_forward_hook(lambda *_: runs.append(1))
    try:
        with pytest.raises(ValueError, match=message):
            collect_features(*setting(), texts(), disable_tqdm=True, **options)
    finally:
        seen.remove()
    assert not runs


def test_windows_are_padded_on_both_sides(collection):
    inside = collection.top.tokens != NO_TOKEN
    filled = collection.top.document >= 0
    assert inside[filled][:, BEFORE].all() and not inside[~filled].any()


def test_an_sae_that_does_not_write_into_the_stream_is_collected_without_effects_on_logits():
    _, model, tokenizer = setting()
    torch.manual_seed(0)
    config = TopKSAEConfig(d_in=16, n_features=20, k=3, hook_point="transformer.h.1.mlp.input", context_length=12)
    collection = collect_features(SAE.from_config(config).eval(), model, tokenizer, texts(), **OPTIONS)
    assert collection.logits is None and collection[0].promoted == []
    assert any(feature.top for feature in collection)


def test_what_is_kept_does_not_grow_with_the_text(monkeypatch):
    sizes = []

    def measured(keeper: _ExampleKeeper, *batch) -> None:
        add(keeper, *batch)
        leaders = [vars(kept).values() for kept in (keeper.top, keeper.sample)]
        columns = [value for values in leaders for value in values if isinstance(value, dict)]
        held = [tensor for column in columns for tensor in column.values()]
        held += [value for values in leaders for value in values if isinstance(value, torch.Tensor)]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in held))

    add = _ExampleKeeper.add
    monkeypatch.setattr(_ExampleKeeper, "add", measured)
    collect_features(*setting(), texts() * 3, batch_size=4, **OPTIONS)
    assert len(sizes) > 10 and sizes[0] > 0 and set(sizes) == {sizes[0]}
