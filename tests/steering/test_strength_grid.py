"""Every number of a steering report against a plain loop, one token at a time and without hfsae's own steering."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from hfsae.steering import StrengthEffect, repeated_share, steering_report
from tests.analysis.tiny import setting
from tests.hooks.witness import replaced
from tests.steering.test_text_effect import PLACE, batches

FEATURE, MAXIMUM, TOKENS = 5, 4.0, [3, 7]
GRID, NEW, PROMPT = (-1.5, 2.0), 6, 5


@pytest.fixture(scope="module")
def report():
    sae, model, _ = setting()
    told = {"strengths": GRID, "maxima": {FEATURE: MAXIMUM}, "token_ids": TOKENS}
    return steering_report(
        model, sae, FEATURE, batches(), **told, n_prompts=4, prompt_tokens=PROMPT, new_tokens=NEW, seed=3
    )


def steered(strength: float):
    """Torch's own hook, which leaves position 0 as it is."""
    sae, model, _ = setting()
    vector = strength * MAXIMUM * sae.W_dec[FEATURE].detach() / sae.input_scale

    def change(x):
        x = x.clone()
        x[:, 1:] += vector
        return x

    return replaced(model, PLACE, change)


@torch.no_grad()
def on_text(strength: float) -> tuple[float, float, float]:
    """Token probability, perplexity and KL, one prediction after the other."""
    model, found = setting().model, []
    for batch in batches():
        for row in range(len(batch.input_ids)):
            length = int(batch.attention_mask[row].sum())
            ids = batch.input_ids[row : row + 1, :length]
            plain = model(ids).logits[0].double().softmax(-1)
            with steered(strength):
                changed = model(ids).logits[0].double().softmax(-1)
            for position in range(1, length - 1):
                p, q = plain[position], changed[position]
                kl = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
                found.append((float(q[3]) + float(q[7]), -math.log(float(q[int(ids[0, position + 1])])), kl))
    probability, loss, kl = (sum(column) / len(found) for column in zip(*found, strict=True))
    return probability, math.exp(loss), kl


@torch.no_grad()
def continued(strength: float) -> list[list[int]]:
    """Sampled without a cache, one token after the other."""
    ids = torch.cat([batch.input_ids for batch in batches()])[:4, :PROMPT]
    torch.manual_seed(3)
    for _ in range(NEW):
        with steered(strength):
            logits = setting().model(ids, use_cache=False).logits[:, -1]
        logits[:, 0] = -torch.inf  # the end of text, which a continuation of full length holds off
        ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], 1)
    return ids[:, PROMPT:].tolist()


@pytest.mark.parametrize("strength", [-1.5, 0.0, 2.0])
def test_every_number_is_that_of_a_plain_loop(report, strength):
    (effect,) = [one for one in report.effects if one.strength == strength]
    probability, perplexity, kl = on_text(strength)
    assert effect.token_probability == pytest.approx(probability, rel=1e-4)
    assert effect.perplexity == pytest.approx(perplexity, rel=1e-4) and effect.kl == pytest.approx(kl, abs=1e-6)
    shares = []
    for row in continued(strength):
        seen, again = set(), 0
        for start in range(len(row) - 3):
            again += str(row[start : start + 4]) in seen
            seen.add(str(row[start : start + 4]))
        shares.append(again / (len(row) - 3))
    assert effect.repetition == pytest.approx(sum(shares) / 4)
    assert (report.unit, report.n_predictions, report.n_prompts) == (MAXIMUM, 32, 4)


def test_without_strength_the_model_is_the_plain_one_to_the_last_bit(report):
    (plain,) = [one for one in report.effects if one.strength == 0]
    assert plain.kl == 0


def made(report, **figures):
    """The report with other figures: strength to token probability, perplexity and repetition."""
    from dataclasses import replace

    effects = [StrengthEffect(s, p, ppl, 0.0, r) for s, (p, ppl, r) in figures["figures"].items()]
    return replace(report, effects=sorted(effects, key=lambda one: one.strength))


def test_the_usable_range_is_what_its_definition_says(report):
    figures = {
        -2.0: (0.01, 16.0, 0.0),  # too high a perplexity
        -1.0: (0.05, 12.0, 0.0),
        0.0: (0.10, 10.0, 0.2),
        0.5: (0.12, 10.0, 0.2),  # too little gain
        1.0: (0.20, 11.0, 0.2),
        2.0: (0.40, 15.0, 0.3),  # at the limits
        3.0: (0.60, 14.0, 0.31),  # repeats too much
        4.0: (0.60, 14.0, 0.2),  # usable by itself, but not next to the others
    }
    found = made(report, figures=figures)
    assert found.usable_range() == (1.0, 2.0) and found.usable_range(negative=True) == (-1.0, -1.0)
    assert made(report, figures={0.0: (0.1, 10.0, 0.0), 1.0: (0.1, 10.0, 0.0)}).usable_range() is None


def test_repetition_counts_ngrams():
    assert repeated_share([1, 2, 3, 4, 5, 6, 7]) == 0 and repeated_share([1, 2]) == 0
    assert repeated_share([5] * 9) == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strengths": [float("inf")]}, "finite"),
        ({"prompt_tokens": 50, "new_tokens": 5}, "has 50 tokens"),
        ({"new_tokens": 500}, "16 tokens and 500 new ones are more than the 64 that the model reads"),
        ({"maxima": {1: 2.0}}, "does not know feature 5"),
        ({"feature": 99}, "from 0 to 39"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    sae, model, _ = setting()
    given = {"feature": FEATURE, "token_ids": TOKENS, **options}
    with pytest.raises(ValueError, match=message):
        steering_report(model, sae, data=batches(), **given)


def test_the_models_own_generation_config_changes_no_continuation(report):
    sae, model, _ = setting()
    own = model.generation_config
    told = {"strengths": GRID, "maxima": {FEATURE: MAXIMUM}, "token_ids": TOKENS, "n_prompts": 4}
    model.generation_config = GenerationConfig(
        eos_token_id=own.eos_token_id, repetition_penalty=5.0, no_repeat_ngram_size=1, min_p=0.9
    )
    try:
        again = steering_report(model, sae, FEATURE, batches(), **told, prompt_tokens=PROMPT, new_tokens=NEW, seed=3)
        assert again.effects == report.effects and model.generation_config.no_repeat_ngram_size == 1
    finally:
        model.generation_config = own


def test_the_report_names_the_text_that_its_samples_continue(report):
    sae, model, tokenizer = setting()
    told = {"strengths": [1.0], "token_ids": TOKENS, "n_prompts": 2, "prompt_tokens": PROMPT, "new_tokens": NEW}
    named = steering_report(model, sae, FEATURE, batches(), tokenizer=tokenizer, **told)
    assert named.prompt is not None and report.prompt is None
    # The word `w<i>` has id i + 1.
    assert named.prompt.split() == [f"w{token - 1}" for token in batches()[0].input_ids[0, :PROMPT].tolist()]


def test_a_strength_that_is_too_much_for_half_precision_is_refused():
    sae, model, _ = setting()
    told = {"strengths": [1e6], "token_ids": TOKENS, "n_prompts": 2, "prompt_tokens": PROMPT}
    with pytest.raises(ValueError, match=r"at a strength of 1e\+06 the model's predictions are no finite numbers"):
        steering_report(copy.deepcopy(model).half(), sae, FEATURE, batches(), **told)


def test_an_adapter_around_the_model_changes_nothing(report):
    sae, model, _ = setting()
    config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)  # it begins as a change of 0
    wrapped = get_peft_model(copy.deepcopy(model), config)
    told = {"strengths": [2.0], "n_prompts": 2, "prompt_tokens": PROMPT, "new_tokens": 4}
    plain, other = (steering_report(one, sae, FEATURE, batches(), **told) for one in (model, wrapped))
    assert other.token_ids == plain.token_ids and other.usable_range() == plain.usable_range()
    assert [one.kl for one in other.effects] == pytest.approx([one.kl for one in plain.effects], abs=1e-6)


def test_a_token_that_is_named_twice_counts_once_and_one_that_is_not_there_is_refused(report):
    sae, model, _ = setting()
    told = {"strengths": GRID, "maxima": {FEATURE: MAXIMUM}, "n_prompts": 4, "new_tokens": 1, "prompt_tokens": PROMPT}
    twice = steering_report(model, sae, FEATURE, batches(), token_ids=[3, 7, 3], **told)
    assert [one.token_probability for one in twice.effects] == [one.token_probability for one in report.effects]
    for tokens in ([], [-1], [10**6]):
        with pytest.raises(ValueError, match="expected ids from 0 to 4"):
            steering_report(model, sae, FEATURE, batches(), token_ids=tokens, **told)
    with pytest.raises(ValueError, match="n_prompts must be positive, got 0"):
        steering_report(model, sae, FEATURE, batches(), token_ids=TOKENS, **{**told, "n_prompts": 0})
