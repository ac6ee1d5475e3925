import json
from itertools import islice

import pytest
import torch

from hfsae.data import LMActivations, NonFiniteActivationsError, TokenBlocks
from hfsae.data.activation_sources import _LateCheck, check_finite
from tests.data.tiny import language_model, llama_like, pythia_like, text_dataset

HOOK_POINTS = ["resid_post.0", "resid_post.1", "mlp_out.1"]


def make_blocks(**options):
    sizes = {"context_length": 8, "batch_size": 3} | options
    return TokenBlocks(text_dataset(*range(1, 30)), pythia_like(), **sizes)


def make_source(model, hook_points=HOOK_POINTS, *, blocks=None, dtype=torch.float32, **options):
    return LMActivations(model, blocks or make_blocks(), hook_points, dtype=dtype, **options)


@pytest.fixture(scope="module")
def model():
    return language_model()


@pytest.mark.parametrize("mix_documents", [True, False])
def test_rows_are_the_hidden_states_of_the_kept_tokens(model, mix_documents):
    source = make_source(model, blocks=make_blocks(mix_documents=mix_documents))
    for batch, chunk in islice(zip(make_blocks(mix_documents=mix_documents), source, strict=True), 5):
        with torch.no_grad():
            states = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        for layer, name in enumerate(HOOK_POINTS[:2], start=1):
            torch.testing.assert_close(chunk[name], states.hidden_states[layer][batch.keep])
        assert {len(rows) for rows in chunk.values()} == {int(batch.keep.sum())}
    source.close()


def test_one_pass_feeds_all_hook_points_and_stops_after_the_last(model):
    calls = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
        for layer, block in enumerate(model.transformer.h)
    ]
    source = make_source(model)
    next(source)
    source.close()
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]


def test_wildcards_name_a_hook_point_each(model):
    source = make_source(model, "resid_post.*")
    assert source.widths == dict.fromkeys(["resid_post.0", "resid_post.1", "resid_post.2"], 16)
    assert next(source).keys() == source.widths.keys()
    source.close()


def test_widths_are_those_of_the_rows(model):
    source = make_source(model, ["mlp_act.0", "resid_post.1"])
    assert source.widths == {name: rows.shape[1] for name, rows in next(source).items()}
    source.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_a_resumed_source_is_equal_whatever_is_prefetched(model, prefetch):
    source = make_source(model)
    list(islice(source, 4))
    state = json.loads(json.dumps(source.state_dict()))
    expected = list(islice(source, 3))
    resumed = make_source(model, prefetch=prefetch)
    next(resumed)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for chunk, other in zip(islice(resumed, 3), expected, strict=True):
        assert all(torch.equal(chunk[name], other[name]) for name in HOOK_POINTS)
    source.close()
    resumed.close()


def test_rows_have_the_dtype_asked_for_and_can_be_trained_on(model):
    source = make_source(model, dtype=torch.bfloat16, prefetch=0)
    assert {rows.dtype for rows in next(source).values()} == {torch.bfloat16}
    rows = next(make_source(model, prefetch=0))["resid_post.1"]
    weight = torch.nn.Parameter(torch.ones(16))
    (rows * weight).sum().backward()
    torch.testing.assert_close(weight.grad, rows.sum(0))


def test_autocast_runs_the_model_in_another_precision(model):
    exact = next(make_source(model, prefetch=0))["mlp_out.1"]
    rough = next(make_source(model, prefetch=0, autocast_dtype=torch.bfloat16))["mlp_out.1"]
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.02, rtol=0.1)


def test_dropout_is_off_and_nothing_stays_on_the_model():
    model = language_model().train()
    first, second = (next(make_source(model, prefetch=0))["resid_post.1"] for _ in range(2))
    assert torch.equal(first, second)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nan_names_the_hook_point_where_it_is():
    model = language_model()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[3] = float("nan")
    source = make_source(model)
    with pytest.raises(NonFiniteActivationsError, match=r"resid_post\.1"):
        next(source)
    source.close()
    assert torch.isfinite(next(make_source(model, ["resid_post.0"], prefetch=0))["resid_post.0"]).all()


def test_rows_that_overflow_the_dtype_are_found():
    model = language_model()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[3] = 1e6
    with pytest.raises(NonFiniteActivationsError, match="float16"):
        next(make_source(model, dtype=torch.float16, prefetch=0))


def test_blocks_longer_than_the_context_are_an_error_at_once(model):
    with pytest.raises(ValueError, match="context_length is 65, but .* 64"):
        make_source(model, blocks=make_blocks(context_length=65, batch_size=1))


def test_tokens_of_another_models_tokenizer_are_an_error():
    blocks = TokenBlocks(text_dataset(40), llama_like(), context_length=8, batch_size=3)
    with pytest.raises(ValueError, match="token id 22, but the language model knows 20"):
        next(make_source(language_model(vocab_size=20), blocks=blocks, prefetch=0))


def test_an_unknown_hook_point_is_an_error_at_once(model):
    with pytest.raises(ValueError, match=r"resid_post\.9"):
        make_source(model, ["resid_post.9"])


def test_finite_rows_pass_even_where_their_sum_overflows():
    largest = torch.full((4, 3), torch.finfo(torch.float32).max)
    check_finite({"a": largest, "b": -largest})
    check = _LateCheck()
    for _ in range(32):
        check.add({"a": largest, "b": -largest})


def test_rows_that_are_not_finite_are_counted_beside_large_ones():
    rows = torch.full((4, 3), torch.finfo(torch.float32).max)
    rows[1, :2] = float("-inf")
    with pytest.raises(NonFiniteActivationsError, match="at b, in 1 of 4 rows of torch.float32"):
        check_finite({"a": -rows[2:], "b": rows})


def test_off_the_cpu_nan_is_found_within_sixteen_chunks():
    check = _LateCheck()
    good, bad = torch.ones(4, 3), torch.full((4, 3), float("inf"))
    for _ in range(16):
        check.add({"a": good, "b": good})
    check.add({"a": good, "b": -bad})
    check.add({"a": good, "b": bad})
    with pytest.raises(NonFiniteActivationsError, match="at b, in one of the last 16 batches"):
        for _ in range(14):
            check.add({"a": good, "b": good})


def test_the_model_is_asked_for_nothing_that_training_does_not_need(model):
    """No key-value cache, no head, and no mask where nothing is masked."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs)

    handles = [
        model.transformer.register_forward_pre_hook(note, with_kwargs=True),
        model.lm_head.register_forward_pre_hook(lambda *_: seen.append("head")),
        model.transformer.ln_f.register_forward_pre_hook(lambda *_: seen.append("final norm")),
    ]
    for mix_documents in (True, False):
        next(make_source(model, ["resid_post.2"], blocks=make_blocks(mix_documents=mix_documents), prefetch=0))
    for handle in handles:
        handle.remove()
    full, padded = seen
    assert full["use_cache"] is False and padded["use_cache"] is False
    assert full["attention_mask"] is None and not padded["attention_mask"].all()
