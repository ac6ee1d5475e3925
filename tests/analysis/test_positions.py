"""Where steering and ablation act, for every way in which a model reads a prompt and writes on, token for token.

The right values are those of plain torch hooks on the whole sequence, read anew for every token without a cache.
"""

import copy
import functools
import inspect

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, DynamicCache, GenerationConfig, PreTrainedModel

from hfsae.analysis import ablate, steer
from tests.analysis.test_interventions import STRENGTHS, added, clamped, from_column, sae_at
from tests.hooks.families import build, input_ids
from tests.hooks.witness import replaced

LENGTH = 6
STEPS = 5
FIRST_COLUMN = {"all": 1, "last": LENGTH - 1, "generated": LENGTH}
CACHED = 2
FAMILIES = {"llama": "model.layers.0.output", "gpt2": "transformer.h.0.output", "mamba": "backbone.layers.0.output"}


@torch.no_grad()
def longhand(model: PreTrainedModel, place: str, ids: Tensor, change) -> tuple[Tensor, Tensor]:
    """The tokens (batch, steps) that are written and the logits (batch, steps, vocabulary) they are chosen from."""
    logits = []
    with replaced(model, place, change):
        for _ in range(STEPS):
            logits.append(model(input_ids=ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], 1)
    return ids[:, -STEPS:], torch.stack(logits, 1)


def written(model: PreTrainedModel, ids: Tensor, **options) -> tuple[Tensor, Tensor]:
    settings = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if "attention_mask" not in options:
        options["attention_mask"] = torch.ones_like(ids)
    output = model.generate(ids, **settings, output_logits=True, return_dict_in_generate=True, **options)
    return output.sequences[:, -STEPS:], torch.stack(output.logits, 1)


def cache_name(model: PreTrainedModel) -> str:
    """What the model's forward calls its cache; transformers 5.24 renamed it."""
    parameters = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "past_key_values", "cache_params") if name in parameters)


def cache_of(output):
    return next(output[name] for name in ("cache", "past_key_values", "cache_params") if output.get(name) is not None)


@functools.cache
def twin(family: str) -> PreTrainedModel:
    """The same model as `build` gives, to which nothing is attached."""
    return copy.deepcopy(build(family))


def filled_cache(model: PreTrainedModel, ids: Tensor):
    """A cache that holds some tokens, made where no SAE is attached."""
    with torch.no_grad():
        return cache_of(model(input_ids=ids, use_cache=True))


def first_column(way, positions: str) -> int:
    """Where the change begins; what a cache holds was read without the SAE."""
    return max(FIRST_COLUMN[positions], CACHED if way in (with_a_filled_cache, with_what_the_cache_lacks) else 0)


# Each way gives the tokens and logits that a model writes after `ids`.
def plain(model, ids):
    return written(model, ids)


def without_cache(model, ids):
    return written(model, ids, use_cache=False)


def static_cache(model, ids):
    return written(model, ids, cache_implementation="static")


def without_mask(model, ids):
    return written(model, ids, attention_mask=None)


def chunked_prefill(model, ids):
    return written(model, ids, prefill_chunk_size=4)


def prompt_lookup(model, ids):
    return written(model, ids, prompt_lookup_num_tokens=3)


def with_assistant(model, ids):
    return written(model, ids, assistant_model=build("llama"))


def with_a_filled_cache(model, ids):
    family = next(name for name in FAMILIES if build(name) is model)
    return written(model, ids, past_key_values=filled_cache(twin(family), ids[:, :CACHED]))


def with_what_the_cache_lacks(model, ids):
    """`generate` takes the new ids alone too, where the mask is as long as the whole prompt."""
    family = next(name for name in FAMILIES if build(name) is model)
    cache = filled_cache(twin(family), ids[:, :CACHED])
    return written(model, ids[:, CACHED:], attention_mask=torch.ones_like(ids), past_key_values=cache)


def left_padded(model, ids):
    padded = torch.nn.functional.pad(ids, (2, 0))
    return written(model, padded, attention_mask=(padded != 0).long())


def left_padded_static(model, ids):
    padded = torch.nn.functional.pad(ids, (2, 0))
    return written(model, padded, attention_mask=(padded != 0).long(), cache_implementation="static")


def by_hand(model, ids):
    return decoded(model, ids, cache_name(model))


def by_hand_with_a_cache_from_the_start(model, ids):
    name = cache_name(model)
    return decoded(model, ids, name, **{name: DynamicCache(config=model.config)})


@torch.no_grad()
def decoded(model, ids, name, **first):
    logits, tokens, inputs = [], [], {"input_ids": ids, **first}
    for _ in range(STEPS):
        output = model(**inputs, use_cache=True)
        logits.append(output.logits[:, -1])
        tokens.append(logits[-1].argmax(-1, keepdim=True))
        inputs = {"input_ids": tokens[-1], name: cache_of(output)}
    return torch.cat(tokens, 1), torch.stack(logits, 1)


EVERY_MODEL = [plain, without_cache, without_mask, by_hand, by_hand_with_a_cache_from_the_start]
ATTENTION = [
    static_cache,
    chunked_prefill,
    prompt_lookup,
    with_a_filled_cache,
    with_what_the_cache_lacks,
    left_padded,
    left_padded_static,
]
ONE_PROMPT = [prompt_lookup, with_assistant]
CASES = [
    *((family, way) for family in FAMILIES for way in EVERY_MODEL),
    *((family, way) for family in ("llama", "gpt2") for way in ATTENTION),
    ("llama", with_assistant),
]


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize(("family", "way"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_steering_acts_on_the_same_tokens_in_every_way(family, way, positions):
    model, place = build(family), FAMILIES[family]
    sae, ids = sae_at(place), input_ids(1 if way in ONE_PROMPT else 2, LENGTH)
    twin(family)
    tokens, logits = longhand(model, place, ids, from_column(first_column(way, positions), added(sae)))
    with steer(model, sae, STRENGTHS, positions=positions):
        steered = way(model, ids)
        again = way(model, ids)
    assert torch.equal(steered[0], tokens)
    torch.testing.assert_close(steered[1], logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(again[1], logits, rtol=0, atol=1e-4)  # the second prompt is a prompt again
    untouched, _ = longhand(model, place, ids, lambda x: x)
    assert not torch.equal(untouched, tokens)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("way", [without_cache, with_a_filled_cache, prompt_lookup], ids=lambda way: way.__name__)
def test_ablation_acts_on_the_same_tokens_in_every_way(way, positions):
    model, place = build("llama"), FAMILIES["llama"]
    sae, ids = sae_at(place), input_ids(1, LENGTH)
    twin("llama")
    features = dict.fromkeys(range(40), 0.0)
    change = from_column(first_column(way, positions), clamped(sae, features))
    tokens, logits = longhand(model, place, ids, change)
    with ablate(model, sae, list(features), positions=positions):
        ablated = way(model, ids)
    assert torch.equal(ablated[0], tokens)
    torch.testing.assert_close(ablated[1], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
def test_beams_are_steered_as_without_a_cache(positions):
    model, sae, ids = build("llama"), sae_at(), input_ids(2, LENGTH)
    options = {"num_beams": 3, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    with replaced(model, FAMILIES["llama"], from_column(FIRST_COLUMN[positions], added(sae))):
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    for use_cache in (True, False):
        with steer(model, sae, STRENGTHS, positions=positions):
            steered = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=use_cache, **options)
        assert torch.equal(steered, expected)


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_every_turn_of_a_conversation_has_a_prompt_of_its_own(positions):
    """A cache goes on from turn to turn, and each `generate` is given all that was said so far."""
    model, place = build("llama"), FAMILIES["llama"]
    sae, turns = sae_at(place), [input_ids(1, LENGTH), input_ids(1, 4)]
    cache, said, found = DynamicCache(config=model.config), turns[0][:, :0], []
    with steer(model, sae, STRENGTHS, positions=positions):
        for turn in turns:
            prompt = torch.cat([said, turn], 1)
            answer, logits = written(model, prompt, past_key_values=cache)
            said = torch.cat([prompt, answer], 1)
            found.append((prompt, logits))
    ends = [len(prompt[0]) for prompt, _ in found]
    for prompt, logits in found:
        right = steered_at(model, place, sae, prompt, positions, ends)
        torch.testing.assert_close(logits, right, rtol=0, atol=1e-4)


@torch.no_grad()
def steered_at(model, place, sae, ids: Tensor, positions: str, ends: list[int]) -> Tensor:
    """The logits of each new token after a prompt, where earlier turns are steered as they were in their time."""
    length, found = ids.shape[1], []
    for _ in range(STEPS):
        columns = torch.zeros(ids.shape[1], dtype=torch.bool)
        for end in ends:
            if end <= length:  # the last token of an earlier answer was never read in its own turn
                columns[end - (positions == "last") : end + STEPS - 1 if end < length else None] = True
        with replaced(model, place, lambda x, columns=columns: torch.where(columns[:, None], x + added(sae)(x), x)):
            found.append(model(input_ids=ids, use_cache=False).logits[:, -1])
        ids = torch.cat([ids, found[-1].argmax(-1, keepdim=True)], 1)
    return torch.stack(found, 1)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
def test_a_loop_of_ones_own_may_say_how_long_the_prompt_is(positions):
    """Read in parts, or without a cache, nothing but `prompt_length` tells a prompt from what follows it."""
    model, place = build("llama"), FAMILIES["llama"]
    sae, ids = sae_at(place), input_ids(2, LENGTH)
    tokens, logits = longhand(model, place, ids, from_column(FIRST_COLUMN[positions], added(sae)))

    with torch.no_grad(), steer(model, sae, STRENGTHS, positions=positions, prompt_length=LENGTH):
        seen, uncached = ids, []
        for _ in range(STEPS):
            uncached.append(model(input_ids=seen, use_cache=False).logits[:, -1])
            seen = torch.cat([seen, uncached[-1].argmax(-1, keepdim=True)], 1)
    torch.testing.assert_close(torch.stack(uncached, 1), logits, rtol=0, atol=1e-4)

    name = cache_name(model)
    with torch.no_grad(), steer(model, sae, STRENGTHS, positions=positions, prompt_length=LENGTH):
        cache = cache_of(model(input_ids=ids[:, :3], use_cache=True))
        in_parts = decoded(model, ids[:, 3:], name, **{name: cache})
    assert torch.equal(in_parts[0], tokens)
    torch.testing.assert_close(in_parts[1], logits, rtol=0, atol=1e-4)


def test_a_first_call_with_a_filled_cache_holds_the_rest_of_the_prompt():
    model, place = build("llama"), FAMILIES["llama"]
    sae, ids = sae_at(place), input_ids(2, LENGTH)
    tokens, logits = longhand(model, place, ids, from_column(LENGTH, added(sae)))
    name = cache_name(model)
    cache = filled_cache(model, ids[:, :3])
    with steer(model, sae, STRENGTHS, positions="generated"):
        steered = decoded(model, ids[:, 3:], name, **{name: cache})
    assert torch.equal(steered[0], tokens)
    torch.testing.assert_close(steered[1], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("more", [2, 5])
def test_after_a_crop_the_prompt_is_read_anew(positions, more):
    """Many questions are asked after one beginning: its cache is cropped, and the next question goes on from there."""
    model, place, name = build("llama"), FAMILIES["llama"], cache_name(build("llama"))
    sae, ids = sae_at(place), input_ids(2, LENGTH)
    other = torch.cat([ids[:, :3], input_ids(2, more).flip(1)], 1)
    with torch.no_grad(), steer(model, sae, STRENGTHS, positions=positions):
        cache = cache_of(model(input_ids=ids, use_cache=True))
        cache.crop(3 - LENGTH)
        tokens, logits = decoded(model, other[:, 3:], name, **{name: cache})
    first = FIRST_COLUMN[positions] if positions == "all" else FIRST_COLUMN[positions] - LENGTH + 3 + more
    expected = longhand(model, place, other, from_column(first, added(sae)))
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(logits, expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("negative", [None, 1, 4, 9])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_negative_prompt_is_a_prompt_of_its_own(positions, negative, use_cache):
    """Classifier-free guidance reads a second sequence; without a negative prompt it begins with the last token."""
    model, place, scale = build("llama"), FAMILIES["llama"], 1.5
    sae, ids = sae_at(place), input_ids(1, LENGTH)
    unwanted = ids[:, -1:] if negative is None else input_ids(1, negative).flip(1)
    options = {} if negative is None else {"negative_prompt_ids": unwanted}
    with steer(model, sae, STRENGTHS, positions=positions):
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            guidance_scale=scale,
            use_cache=use_cache,
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    offset = FIRST_COLUMN[positions] - LENGTH
    ends = [LENGTH, unwanted.shape[1]]
    columns = [max(1, 1 if positions == "all" else end + offset) for end in ends]
    texts = [ids, unwanted]
    for scores in output.scores:
        found = []
        for text, column in zip(texts, columns, strict=True):
            with torch.no_grad(), replaced(model, place, from_column(column, added(sae))):
                found.append(model(input_ids=text, use_cache=False).logits[:, -1].log_softmax(-1))
        wanted, unconditional = found
        torch.testing.assert_close(scores, scale * (wanted - unconditional) + unconditional, rtol=0, atol=1e-4)
        token = scores.argmax(-1, keepdim=True)
        texts = [torch.cat([text, token], 1) for text in texts]


@pytest.mark.parametrize("positions", FIRST_COLUMN)
@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_may_be_the_model_s_own(positions, use_cache, monkeypatch):
    model, ids = build("llama"), input_ids(1, LENGTH)
    with steer(model, sae_at(FAMILIES["llama"]), STRENGTHS, positions=positions):
        asked = written(model, ids, guidance_scale=1.5, use_cache=use_cache)
        monkeypatch.setattr(model.generation_config, "guidance_scale", 1.5)
        own = written(model, ids, use_cache=use_cache)
        given = written(model, ids, use_cache=use_cache, generation_config=GenerationConfig())
    for found in (own, given):
        assert torch.equal(found[0], asked[0]) and torch.equal(found[1], asked[1])


@functools.cache
def encoder_decoder(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 16, "decoder_start_token_id": 0, "pad_token_id": 0}
    if family == "t5":
        sizes |= {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    else:
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None}
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


ENCODER_DECODERS = {"t5": "decoder.block.0.output", "bart": "model.decoder.layers.0.output"}


def padded_question() -> dict[str, Tensor]:
    """What an encoder reads: the first of two rows is shorter."""
    ids = input_ids(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("length", [LENGTH, 4])
def test_a_decoder_has_its_own_padding_and_not_its_encoders(family, length):
    model, place = encoder_decoder(family), ENCODER_DECODERS[family]
    sae, answer = sae_at(place), input_ids(2, length).flip(0)
    call = functools.partial(model, **padded_question(), decoder_input_ids=answer, use_cache=False)
    with torch.no_grad(), replaced(model, place, from_column(1, added(sae))):
        expected = call().logits
    with torch.no_grad(), steer(model, sae, STRENGTHS) as run:
        torch.testing.assert_close(call().logits, expected, rtol=0, atol=1e-4)
    assert run.keep.tolist() == [[False] + [True] * (length - 1)] * 2


@pytest.mark.parametrize("positions", ["all", "generated"])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_decoder_is_steered_in_generate(family, positions):
    model, place = encoder_decoder(family), ENCODER_DECODERS[family]
    sae, begun = sae_at(place), torch.nn.functional.pad(input_ids(2, 2), (1, 0))  # begins with the start token
    options = padded_question() | {
        "decoder_input_ids": begun,
        "max_new_tokens": STEPS,
        "do_sample": False,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with replaced(model, place, from_column(1 if positions == "all" else 3, added(sae))):
        expected = model.generate(**options, use_cache=False).logits
    for use_cache in (True, False):
        with steer(model, sae, STRENGTHS, positions=positions):
            logits = model.generate(**options, use_cache=use_cache).logits
        torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=0, atol=1e-4)
