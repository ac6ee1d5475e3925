"""Running a language model with an SAE attached."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae import SAE, TopKSAEConfig, diff, steering_report, trace
from hfsae.analysis import (
    ablate,
    collect_features,
    export_delphi,
    feature_activations,
    feature_effects,
    find_max_activating_examples,
    logit_effects,
    read_sequences,
    steer,
)
from hfsae.attachment import attach, attach_all, refuse_swapped
from hfsae.dashboard import read_prompts
from hfsae.evaluation import evaluate_sae, evaluate_saes, evaluate_together
from hfsae.evaluation.self_check import self_check
from hfsae.functional import SparseFeatures
from hfsae.hooks import HookPointError
from hfsae.meaning import contrast, passage_features
from hfsae.serving import Playground
from hfsae.serving.playground import ServedSAE
from hfsae.steering import steer_model, text_effects
from hfsae.tables.written import featurize
from tests import models_on_disk
from tests.analysis import tiny
from tests.data.tiny import llama_like
from tests.hooks.families import FAMILIES, build, input_ids
from tests.hooks.witness import count_hooks, recorded

WIDTH = 16
GENERATING = [
    "gpt2",
    "llama",
    "gpt-neox",
    "opt",
    "bloom",
    "falcon",
    "mistral",
    "gemma2",
    "gptj",
    "mamba",
    "qwen3-next",
]


def sae_at(hook_point: str, **fields) -> SAE:
    """A random SAE whose reconstructions are far from what it reads."""
    torch.manual_seed(3)
    return SAE.from_config(TopKSAEConfig(d_in=WIDTH, n_features=48, k=6, hook_point=hook_point, **fields)).eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build("llama")


@pytest.fixture
def sae() -> SAE:
    return sae_at("model.layers.0.output")


def spliced_logits(sae: SAE, model: PreTrainedModel, **inputs) -> Tensor:
    with torch.no_grad(), attach(model, sae, splice=True):
        return model(**inputs, use_cache=False).logits


# -- reading ----------------------------------------------------------------------------------------------------------


def test_reading_gives_the_activations_features_and_reconstruction_of_the_last_forward(sae, model):
    first, last = input_ids(2, 5), input_ids(1, 7)
    with torch.no_grad(), attach(model, sae) as run, recorded(model, ["model.layers.0.output"]) as seen:
        untouched = model(first).logits
        model(last)
    x = seen["model.layers.0.output"]
    assert torch.equal(run.activations, x)
    with torch.no_grad():
        assert torch.equal(run.features.to_dense(), sae.encode(x))
        assert torch.equal(run.reconstruction, sae(x).reconstruction)
        assert torch.equal(model(first).logits, untouched)


def test_attach_is_a_function_of_the_package_that_takes_the_model_first(sae, model):
    from hfsae import attach as public

    assert public is attach
    with pytest.raises(TypeError, match="the language model comes first"), public(sae, model):
        pass


def test_the_door_on_the_sae_is_the_same_attachment(sae, model):
    with torch.no_grad(), sae.attach(model) as run:
        model(input_ids())
    assert run.sae is sae and run.features.shape == (2, 5, 48)


def test_nothing_can_be_read_before_the_model_has_run(sae, model):
    with attach(model, sae) as run:
        with pytest.raises(RuntimeError, match="run the model inside the context"):
            _ = run.features
        assert "nothing seen yet" in repr(run)


def test_no_hook_stays_behind_even_after_an_error(sae, model):
    before = count_hooks(model)  # transformers keeps some of its own once hidden states were asked for
    with attach(model, sae, splice=True):
        assert count_hooks(model) > before
    assert count_hooks(model) == before
    with pytest.raises(ZeroDivisionError), attach(model, sae, splice=True):
        raise ZeroDivisionError
    assert count_hooks(model) == before


def test_inference_mode_needs_nothing_special(sae, model):
    with torch.inference_mode(), attach(model, sae, splice=True) as run:
        model(input_ids())
    assert run.features.values.numpy().shape[:2] == (2, 5)


# -- which tokens -----------------------------------------------------------------------------------------------------


def test_left_out_tokens_and_padding_are_those_of_the_config(model):
    ids = torch.tensor([[7, 1, 8, 9, 2, 10], [7, 8, 9, 10, 0, 0]])  # BOS is 1, EOS 2, padding 0
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    kept = {}
    for special in (True, False):
        for positions in ([0], [], [1, 3]):
            sae = sae_at("model.layers.0.output", exclude_special_tokens=special, exclude_positions=positions)
            with torch.no_grad(), attach(model, sae) as run:
                model(ids, attention_mask=mask)
            kept[special, tuple(positions)] = run.keep.long().tolist()
    assert kept[True, (0,)] == [[0, 0, 1, 1, 0, 1], [0, 1, 1, 1, 0, 0]]
    assert kept[True, ()] == [[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 0, 0]]
    assert kept[False, (1, 3)] == [[1, 0, 1, 0, 1, 1], [1, 0, 1, 0, 0, 0]]
    assert kept[False, ()] == mask.tolist()


def test_positions_count_from_the_first_token_that_is_not_padding(sae, model):
    with torch.no_grad(), attach(model, sae) as run:
        model(torch.tensor([[0, 0, 7, 8]]), attention_mask=torch.tensor([[0, 0, 1, 1]]))
        assert run.keep.tolist() == [[False, False, False, True]]
        model(torch.tensor([[7, 8, 9, 10]]), position_ids=torch.tensor([[0, 1, 0, 1]]))
        assert run.keep.tolist() == [[False, True, False, True]]


def test_a_tokenizer_says_which_tokens_are_special(sae, model):
    tokenizer = llama_like()  # 0 and 1 are special, 2 is a word
    with torch.no_grad(), attach(model, sae, tokenizer=tokenizer) as run:
        model(torch.tensor([[7, 0, 1, 2, 3]]))
    assert run.keep.tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize(
    ("recorded", "left_out"),
    [
        ([[5, 6], [9, 9]], {5, 6, 9}),
        ([[5, 10**15]], set(range(5, 64))),  # as far as there are tokens
        ("odd", {0, 1, 2}),  # the model's own: padding, BOS, EOS
        ([[5, "6"]], {0, 1, 2}),
        (None, {0, 1, 2}),
    ],
)
def test_without_a_tokenizer_special_tokens_are_those_of_the_training(model, recorded, left_out):
    sae = sae_at("model.layers.0.output", exclude_positions=[], training={"special_tokens": recorded})
    ids = torch.arange(64)[None]
    with torch.no_grad(), attach(model, sae) as run:
        model(ids)
    assert set(ids[~run.keep].tolist()) == left_out


def test_an_sae_of_text_leaves_the_places_of_images_as_they_are():
    model, image = models_on_disk.llava(), 4095
    sae = SAE.from_config(TopKSAEConfig(d_in=models_on_disk.WIDTH, n_features=64, k=4, hook_point="resid_post.0"))
    inputs = {"input_ids": torch.tensor([[5, *4 * [image], 6, 7]]), "pixel_values": torch.randn(1, 3, 8, 8)}
    is_word = torch.tensor([[False, *4 * [False], True, True]])  # the first position is left out as ever

    def by_hand(module, args, output):
        return torch.where(is_word[..., None], sae(output).reconstruction, output)

    with torch.no_grad():
        with model.model.language_model.layers[0].register_forward_hook(by_hand):
            expected = model(**inputs).logits
        for tokenizer in (None, models_on_disk.tokenizer()):
            with attach(model, sae, splice=True, tokenizer=tokenizer) as run:
                assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(run.keep, is_word)
        sae.config.exclude_special_tokens = False
        with attach(model, sae) as run:
            model(**inputs)
        assert run.keep.tolist() == [[False, *6 * [True]]]


def test_embeddings_in_place_of_ids_leave_positions_out(sae, model):
    embeddings = model.get_input_embeddings()(input_ids())
    with torch.no_grad(), attach(model, sae) as run:
        model(inputs_embeds=embeddings)
    assert run.keep.tolist() == [[False, True, True, True, True]] * 2


# -- splicing ---------------------------------------------------------------------------------------------------------


def test_spliced_tokens_are_reconstructed_and_left_out_tokens_keep_their_own_activation(sae, model):
    ids = torch.tensor([[7, 8, 2, 9, 10]])
    with torch.no_grad(), recorded(model, ["model.layers.0.output"]) as clean:
        model(ids)
    x = clean["model.layers.0.output"]
    with torch.no_grad(), attach(model, sae, splice=True), recorded(model, ["model.layers.1.input"]) as seen:
        model(ids)
    after = seen["model.layers.1.input"][0]
    with torch.no_grad():
        reconstruction = sae(x).reconstruction[0]
    for position, left_out in enumerate([True, False, True, False, False]):
        assert torch.equal(after[position], x[0, position] if left_out else reconstruction[position])
    assert not torch.allclose(x[0], reconstruction, atol=0.1)


@pytest.mark.parametrize("asked_before", [False, True])
def test_hidden_states_are_those_that_the_next_block_reads(sae, asked_before):
    # transformers hooks the blocks when it is first asked for hidden states, and tells nothing of hooks after its own
    # (5.23.0 and 5.24.0: findings/transformers_hidden_states_before_a_hook.sh).
    model = copy.deepcopy(build("llama"))
    if asked_before:
        model(input_ids(), output_hidden_states=True)
    with torch.no_grad(), attach(model, sae, splice=True) as run, recorded(model, ["model.layers.1.input"]) as seen:
        hidden_states = model(input_ids(), output_hidden_states=True).hidden_states
    assert torch.equal(hidden_states[1], seen["model.layers.1.input"])
    assert not torch.allclose(hidden_states[1], run.activations, atol=0.1)


def test_keep_error_leaves_the_logits_as_they_are_to_the_last_bit(sae, model):
    ids = input_ids()
    with torch.no_grad():
        clean = model(ids).logits
        with attach(model, sae, splice=True, keep_error=True):
            assert torch.equal(model(ids).logits, clean)
    assert not torch.allclose(spliced_logits(sae, model, input_ids=ids), clean, atol=1e-3)


def test_with_the_error_kept_gradients_reach_the_features(sae, model):
    ids = input_ids()
    with attach(model, sae, splice=True, keep_error=True) as run:
        loss = model(ids, labels=ids).loss
    (gradient,) = torch.autograd.grad(loss, run.features.entry_values)
    assert gradient.abs().max() > 0


def without_feature(feature: int):
    def edit(features: SparseFeatures) -> Tensor:
        dense = features.to_dense().clone()
        dense[..., feature] = 0
        return dense

    return edit


def test_an_edit_with_the_error_kept_changes_the_activation_by_what_the_feature_wrote(sae, model):
    ids = input_ids()
    with torch.no_grad(), attach(model, sae) as run, recorded(model, ["model.layers.1.input"]) as clean:
        model(ids)
    keep, dense = run.keep, run.features.to_dense()
    feature = int((dense * keep[..., None]).sum((0, 1)).argmax())
    with torch.no_grad(), recorded(model, ["model.layers.1.input"]) as edited:
        with attach(model, sae, splice=True, keep_error=True, edit=without_feature(feature)):
            model(ids)
    change = edited["model.layers.1.input"] - clean["model.layers.1.input"]
    written = dense[..., feature, None] * sae.W_dec[feature] / sae.input_scale
    torch.testing.assert_close(change, -(written * keep[..., None]).detach(), atol=1e-5, rtol=1e-4)
    assert change.abs().max() > 0.01


def test_an_edit_may_return_sparse_features(sae, model):
    ids = input_ids()
    with torch.no_grad(), attach(model, sae, splice=True, edit=lambda features: features):
        unchanged = model(ids).logits
    torch.testing.assert_close(unchanged, spliced_logits(sae, model, input_ids=ids))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda features: None, TypeError, "an edit must return the features"),
        (lambda features: 1.0, TypeError, "must be a tensor or what encode_sparse returned, got float"),
        (lambda features: features.to_dense()[0], ValueError, r"must have the shape \(..., 2, "),
        (lambda features: features.to_dense()[..., :24], ValueError, r"must have the shape \(..., 2, "),
        (lambda features: torch.cat([features.to_dense()] * 2, -1), ValueError, r"must have the shape \(..., 2, "),
    ],
)
def test_an_edit_that_returns_something_else_is_refused(sae, model, edit, error, message):
    """Features of one row of a batch would else be those of all rows."""
    with attach(model, sae, splice=True, edit=edit), pytest.raises(error, match=message):
        model(input_ids(2, 5))


def test_a_transcoder_reads_at_one_place_and_writes_at_another(model):
    sae = sae_at(
        "model.layers.1.mlp.input", target_hook_point="model.layers.1.mlp.output", subtract_b_dec=False,
        exclude_positions=[0], exclude_special_tokens=False,
    )  # fmt: skip
    ids = input_ids()
    places = ["model.layers.1.mlp.input", "model.layers.1.mlp.output"]
    with torch.no_grad(), recorded(model, places) as clean:
        model(ids)
    with torch.no_grad(), attach(model, sae, splice=True) as run, recorded(model, places[1:]) as spliced:
        model(ids)
        written = sae(clean[places[0]]).reconstruction
    torch.testing.assert_close(run.activations, clean[places[0]])
    torch.testing.assert_close(spliced[places[1]][:, 1:], written[:, 1:])
    assert torch.equal(spliced[places[1]][:, 0], clean[places[1]][:, 0])


def test_two_saes_at_two_places_compose(model):
    lower, upper = sae_at("model.layers.0.output"), sae_at("model.layers.1.output")
    with torch.no_grad(), attach(model, lower, splice=True), attach(model, upper) as run:
        model(input_ids())
    with torch.no_grad(), attach(model, upper) as alone:
        model(input_ids())
    assert not torch.allclose(run.activations, alone.activations, atol=1e-3)


def test_an_sae_in_another_precision_is_cast_at_the_border(sae):
    model = copy.deepcopy(build("llama")).to(torch.bfloat16)
    with torch.no_grad(), attach(model, sae, splice=True) as run:
        logits = model(input_ids()).logits
    assert logits.dtype == run.activations.dtype == torch.bfloat16
    assert run.reconstruction.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(run.reconstruction, sae(run.activations.float()).reconstruction)


# -- generate ---------------------------------------------------------------------------------------------------------


def generate_by_hand(sae: SAE, model: PreTrainedModel, ids: Tensor, steps: int) -> Tensor:
    """Greedy decoding without a cache: every step runs the whole text, so positions speak for themselves."""
    for _ in range(steps):
        logits = spliced_logits(sae, model, input_ids=ids)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("family", GENERATING)
def test_generate_with_a_cache_goes_on_counting_positions(family):
    model = build(family)
    # Position 5 lies in the first generated token: whoever starts again at 0 in every step leaves position 0 out anew.
    sae = sae_at(FAMILIES[family].expected(0)["resid_post"], exclude_positions=[0, 5], exclude_special_tokens=False)
    ids = input_ids(2, 5)
    with torch.no_grad(), attach(model, sae, splice=True) as run:
        generated = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )
    assert torch.equal(generated, generate_by_hand(sae, model, ids, 4))
    assert run.features.shape[:2] == (2, 1) and run.keep.all()


def test_generate_after_left_padding_gives_what_the_unpadded_prompt_gives(model):
    sae = sae_at("model.layers.0.output", exclude_positions=[0, 1])
    ids = input_ids(1, 4)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), attach(model, sae, splice=True):
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        after_padding = model.generate(padded, attention_mask=mask, **options)
    assert torch.equal(after_padding[:, 3:], plain)


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_on_entering(sae, model):
    before = count_hooks(model)
    with pytest.raises(ValueError, match="names no hook point"), attach(model, sae_at(None)):  # type: ignore[arg-type]
        pass
    with pytest.raises(HookPointError, match="layers.9"), attach(model, sae_at("model.layers.9.output")):
        pass
    with pytest.raises(ValueError, match="24 dimensions, but this SAE has d_in=16"):
        with attach(model, sae_at("model.layers.0.mlp.down_proj.input")):
            pass
    for arguments in ({"keep_error": True}, {"edit": lambda features: features}):
        with pytest.raises(ValueError, match="splice=True"), attach(model, sae, **arguments):
            pass
    assert count_hooks(model) == before


def test_the_model_inside_of_the_causal_lm_knows_its_tokens_too(sae, model):
    with torch.no_grad(), attach(model, sae, splice=True) as run:
        expected = model(input_ids()).logits
        inner = model.model(input_ids()).last_hidden_state
    assert run.keep.tolist() == [[False, True, True, True, True]] * 2
    assert torch.equal(model.lm_head(inner), expected)


def test_a_block_alone_is_read_but_not_spliced(sae, model):
    x = torch.randn(2, 5, WIDTH)
    rotary = model.model.rotary_emb(x, torch.arange(5)[None])
    with torch.no_grad(), attach(model, sae) as run:
        model.model.layers[0](x, position_embeddings=rotary)
    assert run.keep is None and run.features.shape == (2, 5, 48)
    with torch.no_grad(), attach(model, sae, splice=True):
        with pytest.raises(ValueError, match="Call the model itself"):
            model.model.layers[0](x, position_embeddings=rotary)


def test_a_block_alone_is_not_about_the_tokens_of_the_call_before(sae, model):
    x = torch.randn(2, 5, WIDTH)
    rotary = model.model.rotary_emb(x, torch.arange(5)[None])
    with torch.no_grad(), attach(model, sae) as run:
        model(input_ids())
        assert torch.equal(run.call.ids, input_ids())
        model.model.layers[0](x, position_embeddings=rotary)
    assert run.keep is None and run.call is None
    for part, given in ((model.model.layers[0], {"position_embeddings": rotary}), (model.model.forward, {})):
        with torch.no_grad(), attach(model.model, sae, splice=True):
            model.model(input_ids())
            with pytest.raises(ValueError, match="Call the model itself"):
                part(**({"hidden_states": x} if given else {"input_ids": input_ids()}), **given)


# -- many at once -----------------------------------------------------------------------------------------------------


@pytest.fixture
def transcoders() -> dict[str, SAE]:
    return {f"mlp_in.{i}": sae_at(f"mlp_in.{i}", target_hook_point=f"mlp_out.{i}") for i in (0, 1)}


def test_all_of_a_set_read_one_forward_pass(transcoders, model):
    names = [f"model.layers.{i}.mlp.input" for i in (0, 1)]
    with torch.no_grad(), attach_all(model, transcoders) as runs, recorded(model, names) as seen:
        model(input_ids())
    assert list(runs) == list(transcoders)
    for run, name in zip(runs.values(), names, strict=True):
        assert torch.equal(run.activations, seen[name])
        assert run.features.shape == (2, 5, 48) and torch.equal(run.features.to_dense(), run.sae.encode(seen[name]))


def test_all_of_a_set_spliced_in_is_each_attached_around_the_other(transcoders, model):
    first, second = transcoders.values()
    with torch.no_grad():
        with attach_all(model, transcoders, splice=True) as runs:
            together = model(input_ids()).logits
        with attach(model, first, splice=True), attach(model, second, splice=True) as run:
            nested = model(input_ids()).logits
    assert torch.equal(together, nested) and torch.equal(runs["mlp_in.1"].activations, run.activations)
    assert not torch.allclose(together, spliced_logits(first, model, input_ids=input_ids()))


def test_with_all_errors_kept_the_model_is_what_it_was_and_an_edit_has_its_effect(transcoders, model):
    def silent(features: SparseFeatures) -> Tensor:
        return torch.zeros_like(features.to_dense())

    with torch.no_grad():
        clean = model(input_ids()).logits
        with attach_all(model, transcoders, splice=True, keep_error=True):
            assert torch.equal(model(input_ids()).logits, clean)
        edits = {"mlp_in.1": silent}
        with attach_all(model, transcoders, splice=True, keep_error=True, edits=edits) as runs:
            edited = model(input_ids()).logits
        with attach(model, transcoders["mlp_in.1"], splice=True, keep_error=True, edit=silent):
            assert torch.allclose(model(input_ids()).logits, edited, atol=1e-6)
    assert not torch.allclose(edited, clean) and len(runs["mlp_in.0"].features.values)


def test_an_autoencoder_first_at_a_place_hands_its_reconstruction_on(model):
    place = "model.layers.0.output"
    reader = sae_at(place, target_hook_point="model.layers.1.output")
    with torch.no_grad(), attach_all(model, {"first": sae_at(place), "then": reader}, splice=True) as runs:
        model(input_ids())
    keep = runs["first"].keep[..., None]
    assert torch.equal(
        runs["then"].activations, torch.where(keep, runs["first"].reconstruction, runs["first"].activations)
    )


def test_what_cannot_be_attached_together_is_refused_by_name(transcoders, model):
    rival = {**transcoders, "rival": sae_at("mlp_in.1", target_hook_point="mlp_out.1")}
    with pytest.raises(ValueError, match=r"'mlp_in\.1' and 'rival' write at .*splice=False"):
        attach_all(model, rival, splice=True).__enter__()
    with attach_all(model, rival):  # they may read it together
        pass
    with pytest.raises(HookPointError, match=r"SAE 'far': .*9"):
        attach_all(model, {"far": sae_at("mlp_in.9")}).__enter__()
    with pytest.raises(ValueError, match="there is no SAE to attach"):
        attach_all(model, {}).__enter__()
    with pytest.raises(ValueError, match="edits names mlp_in.7, but the SAEs are mlp_in.0, mlp_in.1"):
        attach_all(model, transcoders, splice=True, edits={"mlp_in.7": lambda features: features}).__enter__()
    with pytest.raises(ValueError, match="pass splice=True too"):
        attach_all(model, transcoders, keep_error=True).__enter__()


def test_what_stands_in_the_place_of_the_other_is_refused():
    sae, model, _ = tiny.setting()
    refuse_swapped(sae, model)
    for given in ((model, sae), (model, model), (sae, sae), (None, model)):
        with pytest.raises(TypeError, match=f"got a {type(given[0]).__name__} as SAE and a "):
            refuse_swapped(*given)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, tokenizer, _: evaluate_sae(a, b, ["w1 w2"], tokenizer),
        lambda a, b, tokenizer, _: evaluate_saes({"mine": a}, b, ["w1 w2"], tokenizer),
        lambda a, b, tokenizer, _: evaluate_together({"mine": a}, b, ["w1 w2"], tokenizer),
        lambda a, b, tokenizer, _: self_check(a, b, ["w1 w2"], tokenizer),
        lambda a, b, tokenizer, _: collect_features(a, b, tokenizer, ["w1 w2"]),
        lambda a, b, tokenizer, _: feature_effects(a, b, tokenizer, "w1 w2"),
        lambda a, b, *_: logit_effects(a, b),
        lambda a, b, tokenizer, folder: featurize(a, b, tokenizer, ["w1 w2"], folder / "features.parquet"),
        lambda a, b, tokenizer, _: contrast(a, b, tokenizer, ["w1", "w2", "w3"], ["w4", "w5", "w6"]),
        lambda a, b, *_: attach(b, a).__enter__(),
        lambda a, b, *_: steer(b, a, {1: 1.0}).__enter__(),
        lambda a, b, *_: ablate(b, a, [1]).__enter__(),
        lambda a, b, tokenizer, folder: steer_model(b, a, {1: 1.0}, folder / "steered", tokenizer=tokenizer),
        lambda a, b, tokenizer, _: steering_report(b, a, 1, ["w1 w2"], tokenizer=tokenizer),
        lambda a, b, tokenizer, _: text_effects(b, a, ["w1 w2"], {}, tokenizer=tokenizer),
        lambda a, b, tokenizer, _: next(read_sequences(a, b, tokenizer, ["w1 w2"])),
        lambda a, b, tokenizer, _: feature_activations(a, b, tokenizer, ["w1 w2"], [1]),
        lambda a, b, tokenizer, _: find_max_activating_examples(a, b, tokenizer, ["w1 w2"], 1),
        lambda a, b, tokenizer, _: read_prompts(a, b, tokenizer, ["w1 w2"]),
        lambda a, b, tokenizer, _: passage_features(a, b, tokenizer, None, "w1 w2"),  # type: ignore[arg-type]
        lambda a, b, tokenizer, folder: export_delphi(a, b, tokenizer, ["w1 w2"], folder / "delphi"),
        lambda a, b, tokenizer, _: diff(a, b, ["w1 w2"], tokenizer),
        lambda a, b, tokenizer, _: Playground({"mine": ServedSAE(a, None)}, b, tokenizer),  # type: ignore[arg-type]
        lambda a, b, tokenizer, _: trace(b, {"mine": a}, "w1 w2", tokenizer=tokenizer),
    ],
)
def test_an_sae_and_a_model_in_the_wrong_order_are_refused_in_a_sentence(call, tmp_path):
    sae, model, tokenizer = tiny.setting()
    with pytest.raises(TypeError, match="no SAE|expected an SAE|language model comes first"):
        call(model, sae, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
    for given in (sae.config, "runs/tiny", tokenizer):
        with pytest.raises(TypeError, match="no SAE|expected an SAE"):
            call(given, model, tokenizer, tmp_path)
    for given in ("gpt2", tokenizer, model.config):
        with pytest.raises(TypeError, match="expected a Hugging Face language model"):
            call(sae, given, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
