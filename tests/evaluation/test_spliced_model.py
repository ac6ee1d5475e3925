"""Runs with shortcuts against plain runs with torch's own hooks, in many families."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    EsmConfig,
    EsmForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from hfsae.evaluation.spliced_model import SplicedModel, agree, model_inputs, rounding_of
from hfsae.hooks import resolve_hook_point
from hfsae.hooks.gelu import fused_gelu
from tests.evaluation.tiny import batches, language_model
from tests.hooks.families import FAMILIES, LAYERS, build, input_ids
from tests.hooks.witness import count_hooks, recorded, replaced

FAMILIES_RUN = [
    "bloom", "cohere", "falcon", "falcon-sequential", "gemma2", "gemma3", "gemma3-vision", "gpt-neo", "gpt-neox",
    "gpt-oss", "gpt2", "gptj", "granite", "jamba", "llama", "mamba", "mistral", "mixtral", "olmo2", "opt", "phi",
    "phi3", "qwen2", "qwen3-moe", "qwen3-next", "stablelm",
]  # fmt: skip


def inputs_of(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def test_a_model_that_rules_tokens_out_stands_shortcuts():
    model = copy.deepcopy(language_model())
    point = resolve_hook_point(model, "resid_post.1")
    model.lm_head.register_forward_hook(lambda *given: given[2].index_fill(-1, torch.tensor([5]), -torch.inf))
    assert SplicedModel(model, [point], [point], inputs_of(input_ids(3, 6))).shortcuts


def test_what_is_ruled_out_equals_itself_alone():
    logits = torch.tensor([[1.0, -torch.inf, 1000.0]])
    assert rounding_of(logits, 1e-5) == pytest.approx(1e-2) and rounding_of(logits.half(), 1e-5) == pytest.approx(
        3.9, rel=0.01
    )
    assert agree(logits, logits + 1e-3, torch.tensor(1e-2))
    for other in (logits + 0.1, logits.nan_to_num(neginf=-1e30), logits * torch.nan, -logits):
        assert not agree(logits, other, torch.tensor(1e-2))


@pytest.mark.parametrize("family", FAMILIES_RUN)
@torch.no_grad()
def test_every_run_gives_the_logits_of_a_plain_one(family):
    model, ids = build(family), input_ids(3, 6)
    last = FAMILIES[family].expected(LAYERS - 1)
    places = [FAMILIES[family].expected(0)["resid_post"], *(last[role] for role in ("resid_pre", "resid_post"))]
    if "mlp_out" in last:
        places.append(last["mlp_out"])
    points = {place: resolve_hook_point(model, place) for place in places}
    spliced = SplicedModel(model, points.values(), points.values(), inputs_of(ids))
    assert spliced.shortcuts
    with recorded(model, places) as seen:
        clean = model(ids).logits
    activations, final = spliced.read(inputs_of(ids))
    torch.testing.assert_close(spliced.logits(final.flatten(0, 1)), clean.flatten(0, 1))
    for place, point in points.items():
        torch.testing.assert_close(
            activations[point], seen[place].unflatten(0, ids.shape) if seen[place].dim() == 2 else seen[place]
        )
        other = activations[point].flip(1) * 1.5
        with replaced(model, place, lambda x, other=other: other.clone().reshape(x.shape)):
            expected = model(ids).logits
        run = spliced.write(inputs_of(ids), point, other)
        torch.testing.assert_close(spliced.logits(run.flatten(0, 1)), expected.flatten(0, 1), msg=f"{family} {place}")
        assert not torch.allclose(expected, clean)


def test_blocks_below_the_place_are_not_run_again():
    model, ids = language_model(), input_ids(2, 5).clamp(max=40)
    place = resolve_hook_point(model, "resid_post.1")
    calls = []
    with torch.no_grad():
        spliced = SplicedModel(model, [], [place], inputs_of(ids))
        activations, _ = spliced.read(inputs_of(ids))
        # The attention inside of a block runs only where the block does.
        hooks = [
            block.attn.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
            for layer, block in enumerate(model.transformer.h)
        ]
        try:
            spliced.write(inputs_of(ids), place, activations[place])
        finally:
            for hook in hooks:
                hook.remove()
    assert calls == [2]


class SharedBlocks(GPT2LMHeadModel):
    """Its third block is its first one again, so what the first one is made to answer would reach the third."""

    def __init__(self, config: GPT2Config):
        super().__init__(config)
        self.transformer.h[2] = self.transformer.h[0]


class BiasedByIds(GPT2LMHeadModel):
    """Its logits depend on the token ids themselves, not on the decoder's last state alone."""

    def forward(self, input_ids=None, **kwargs):  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + input_ids[..., None]
        return output


class BiasedByPosition(GPT2LMHeadModel):
    """Its logits depend on where in the sequence a state stands."""

    def forward(self, input_ids=None, **kwargs):  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + torch.arange(input_ids.shape[1])[:, None]
        return output


class BiasedByNeighbours(GPT2LMHeadModel):
    """Its logits depend on the state before."""

    def forward(self, input_ids=None, **kwargs):  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + output.logits.roll(1, dims=1)
        return output


class OfWholeSequences(GPT2LMHeadModel):
    """Reads sequences of twelve tokens, and no others."""

    def forward(self, input_ids=None, **kwargs):  # type: ignore[override]
        if input_ids.shape[1] != 12:
            raise IndexError("index out of range in self")
        return super().forward(input_ids=input_ids, **kwargs)


@pytest.mark.parametrize(
    "model_class", [SharedBlocks, BiasedByIds, BiasedByPosition, BiasedByNeighbours, OfWholeSequences]
)
@torch.no_grad()
def test_a_model_that_does_not_stand_shortcuts_is_run_in_full(model_class):
    config = copy.deepcopy(language_model().config)
    torch.manual_seed(0)
    model = model_class(config).eval()
    inputs = model_inputs(model, batches(1)[0])
    place = resolve_hook_point(model, "resid_post.1")
    spliced = SplicedModel(model, [place], [place], inputs)
    assert not spliced.shortcuts
    activations, final = spliced.read(inputs)
    other = activations[place] * 2
    with fused_gelu(model):
        clean = model(**inputs, use_cache=False).logits
        with replaced(model, str(place), lambda _: other):
            changed = model(**inputs, use_cache=False).logits
    assert torch.equal(spliced.logits(final), clean)
    assert torch.equal(spliced.write(inputs, place, other), changed)


class InPlaceBlock(GPT2Block):
    """Writes into what the block before it returned."""

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states.mul_(1.5), *args, **kwargs)


@torch.no_grad()
def test_a_model_that_writes_into_its_blocks_outputs_is_given_copies():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(copy.deepcopy(language_model().config)).eval()
    model.transformer.h[1] = InPlaceBlock(model.config, layer_idx=1).eval()
    inputs = model_inputs(model, batches(1)[0])
    place = resolve_hook_point(model, "mlp_out.1")
    spliced = SplicedModel(model, [], [place], inputs)
    assert spliced.shortcuts
    activations, _ = spliced.read(inputs)
    for factor in (2, 3):
        other = activations[place] * factor
        with replaced(model, str(place), lambda _, other=other: other.clone()):
            expected = model(**inputs).logits.flatten(0, 1)
        torch.testing.assert_close(spliced.logits(spliced.write(inputs, place, other).flatten(0, 1)), expected)


@torch.no_grad()
def test_a_place_after_the_decoder_is_run_in_full():
    model = language_model()
    inputs = model_inputs(model, batches(1)[0])
    place = resolve_hook_point(model, "lm_head.input")
    spliced = SplicedModel(model, [place], [place], inputs)
    activations, final = spliced.read(inputs)
    assert torch.equal(spliced.write(inputs, place, activations[place]), final)
    assert not torch.allclose(spliced.write(inputs, place, activations[place] * 2), final)


SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
WITH_EMBEDDINGS_OUTSIDE = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL, max_position_embeddings=12)),
    "bert-decoder": lambda: BertLMHeadModel(BertConfig(**SMALL, max_position_embeddings=12, is_decoder=True)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SMALL, max_position_embeddings=14)),
    "esm": lambda: EsmForMaskedLM(EsmConfig(**SMALL, max_position_embeddings=14, pad_token_id=1, mask_token_id=4)),
}


@pytest.mark.parametrize("family", WITH_EMBEDDINGS_OUTSIDE)
@torch.no_grad()
def test_logits_of_many_rows_are_made_in_sequences_that_the_model_can_read(family):
    """Twelve tokens are all that these models can read; their embeddings lie outside of their decoders."""
    torch.manual_seed(0)
    model, ids = WITH_EMBEDDINGS_OUTSIDE[family]().eval(), input_ids(9, 12).clamp(min=5, max=40)
    place = resolve_hook_point(model, "resid_post.1")
    spliced = SplicedModel(model, [], [place], inputs_of(ids))
    assert spliced.shortcuts
    activations, final = spliced.read(inputs_of(ids))
    with recorded(model, [str(place)]) as seen:
        clean = model(**inputs_of(ids)).logits
    torch.testing.assert_close(activations[place], seen[str(place)])
    for rows in (5, 12, 50, 9 * 12):
        torch.testing.assert_close(spliced.logits(final.flatten(0, 1)[:rows]), clean.flatten(0, 1)[:rows])
    other = activations[place].flip(1) * 1.5
    with replaced(model, str(place), lambda _: other.clone()):
        expected = model(**inputs_of(ids)).logits
    run = spliced.write(inputs_of(ids), place, other)
    torch.testing.assert_close(spliced.logits(run.flatten(0, 1)), expected.flatten(0, 1))


def test_full_runs_are_cut_so_that_their_logits_fit(monkeypatch):
    model = language_model()
    inputs = model_inputs(model, batches(1)[0])
    place = resolve_hook_point(model, "lm_head.input")
    with torch.no_grad():
        full = SplicedModel(model, [place], [place], inputs)
        short = SplicedModel(model, [], [resolve_hook_point(model, "resid_post.0")], inputs)
    assert short.sequences_at_once(length=12, runs=4) is None
    monkeypatch.setattr("hfsae.evaluation.spliced_model._LOGIT_BYTES", 3 * 4 * 12 * 48 * 4)
    assert full.sequences_at_once(length=12, runs=4) == 3
    assert full.sequences_at_once(length=10_000, runs=4) == 1


@torch.no_grad()
def test_nothing_stays_on_the_model():
    model, ids = language_model(), input_ids(2, 5).clamp(max=40)
    place = resolve_hook_point(model, "resid_post.1")
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    spliced = SplicedModel(model, [place], [place], inputs_of(ids))
    activations, final = spliced.read(inputs_of(ids))
    spliced.write(inputs_of(ids), place, activations[place])
    spliced.logits(final.flatten(0, 1))
    assert count_hooks(model) == 0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


@torch.no_grad()
def test_a_forward_that_someone_else_put_there_is_put_back():
    model, ids = copy.deepcopy(language_model()), input_ids(2, 5).clamp(max=40)
    block = model.transformer.h[0]
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    theirs = block.forward
    place = resolve_hook_point(model, "resid_post.1")
    spliced = SplicedModel(model, [place], [place], inputs_of(ids))
    activations, _ = spliced.read(inputs_of(ids))
    spliced.write(inputs_of(ids), place, activations[place])
    assert block.forward is theirs
