"""Passes: places passed never, once or several times; other threads; blocks that run again in the backward pass."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hfsae import SAE, TopKSAEConfig
from hfsae.attachment import attach
from hfsae.hooks import HookPointError, add_vector, capture, splice
from tests.analysis.test_interventions import sae_at
from tests.circles import tensors_in_circles
from tests.hooks.families import build, input_ids
from tests.hooks.model_types import text_ids, tiny_model
from tests.hooks.witness import count_hooks, replaced
from tests.older import HOOKS_OUTSIDE_OF_CHECKPOINTS

VECTOR = torch.linspace(-3, 3, 16)


@pytest.fixture
def model() -> PreTrainedModel:
    return copy.deepcopy(build("llama"))


@torch.no_grad()
def logits(model, ids=None) -> torch.Tensor:
    return model(input_ids() if ids is None else ids, use_cache=False).logits


# -- early ------------------------------------------------------------------------------------------------------------
def test_drafts_of_an_early_exit_need_not_come_to_the_place():
    """Whole passes check what a draft proposes, so that the tokens are those of the edited model."""
    model, place = tiny_model("llama"), "model.layers.3.output"
    ids, vector, n_layers = text_ids(model)[:1], torch.linspace(-3, 3, 32), model.config.num_hidden_layers
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, **options)
    with replaced(model, place, add_vector(vector)):
        expected = model.generate(ids, **options)
    assert not torch.equal(expected, plain)
    with splice(model, place, add_vector(vector)):
        drafted = model.generate(ids, assistant_early_exit=2, **options)
    assert torch.equal(drafted, expected) and model.config.num_hidden_layers == n_layers


# -- never ------------------------------------------------------------------------------------------------------------
class _Skipping(nn.Module):
    """A block that a flag takes out of the model, as text alone does with Llama 3.2 Vision's cross-attention."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self.skips = False

    def forward(self, hidden_states, **kwargs):
        return hidden_states if self.skips else self.block(hidden_states, **kwargs)


@pytest.fixture
def skipping(model) -> PreTrainedModel:
    model.model.layers[1] = _Skipping(model.model.layers[1])
    return model


INNER = "model.layers.1.block.mlp.down_proj.output"


def test_a_place_that_a_pass_does_not_come_to_is_an_error_whatever_wants_it(skipping):
    sae = sae_at(INNER)
    with splice(skipping, INNER, lambda x: x * 0), attach(skipping, sae, splice=True), capture(skipping, INNER):
        logits(skipping)
        skipping.model.layers[1].skips = True
        with pytest.raises(HookPointError, match="finished without passing model.layers.1.block.mlp.down_proj.output"):
            logits(skipping)
        skipping.model.layers[1].skips = False
        logits(skipping)


def test_attaching_where_the_model_does_not_pass_is_refused_before_anything_runs(skipping):
    skipping.model.layers[1].skips = True
    before = count_hooks(skipping)
    with pytest.raises(HookPointError, match="finished without passing"), attach(skipping, sae_at(INNER)):
        pass
    assert count_hooks(skipping) == before


def test_a_wildcard_takes_the_places_that_are_passed_and_names_the_others():
    model = tiny_model("mllama")
    with pytest.warns(UserWarning, match=r"did not pass .*layers\.\d+\.output"):
        with capture(model, "resid_post.*") as found:
            found.run(input_ids=text_ids(model))
    skipped = set(found.hook_points) - set(found)
    assert skipped and set(found)
    with pytest.raises(HookPointError, match="finished without passing"):
        with capture(model, sorted(skipped)[0]) as one:
            one.run(input_ids=text_ids(model))


# -- several times ----------------------------------------------------------------------------------------------------
class _Twice(nn.Module):
    """A model's middle that runs its block three times, as looped and recursive models do."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **kwargs):
        for _ in range(3):
            hidden_states = self.block(hidden_states, **kwargs)
        return hidden_states


@pytest.fixture
def looped(model) -> PreTrainedModel:
    model.model.layers[0] = _Twice(model.model.layers[0])
    return model


LOOPED = "model.layers.0.block.output"


def test_a_place_that_is_passed_several_times_needs_a_visit(looped):
    for opening in (
        lambda: capture(looped, LOOPED),
        lambda: attach(looped, sae_at(LOOPED)),
        lambda: attach(looped, sae_at(LOOPED), splice=True),
    ):
        with pytest.raises(HookPointError, match=r"3 times.*output@0' is the first"), opening():
            pass
    with splice(looped, LOOPED, lambda x: x), pytest.raises(HookPointError, match="more than once"):
        logits(looped)
    with pytest.raises(HookPointError, match="from 0 to 2"), capture(looped, f"{LOOPED}@3"):
        pass


@pytest.mark.parametrize("visit", [0, 1, 2])
def test_capture_attach_and_splice_mean_the_same_visit(looped, visit):
    seen, visits = [], []
    handle = looped.model.layers[0].block.register_forward_hook(lambda *call: seen.append(call[2].clone()))
    logits(looped)
    handle.remove()
    place, sae = f"{LOOPED}@{visit}", sae_at(f"{LOOPED}@{visit}")
    with attach(looped, sae) as run, capture(looped, place, stop=False) as whole:
        logits(looped)
    with capture(looped, place) as stopped:
        stopped.run(input_ids=input_ids())
    for found in (run.activations, whole[place], stopped[place]):
        assert torch.equal(found, seen[visit])

    def change(module, args, output):
        visits.append(output)
        return output + VECTOR if len(visits) == visit + 1 else None

    handle = looped.model.layers[0].block.register_forward_hook(change)
    expected = logits(looped)
    handle.remove()
    with splice(looped, place, add_vector(VECTOR)):
        assert torch.equal(logits(looped), expected)


# -- threads ----------------------------------------------------------------------------------------------------------
def test_contexts_act_in_the_thread_that_entered_them_and_in_no_other(model):
    expected, found, failures = {}, {}, []
    for index in range(4):
        with replaced(model, "model.layers.0.output", lambda x, index=index: x + index * VECTOR):
            expected[index] = logits(model)
    meeting = threading.Barrier(4)

    def work(index: int) -> None:
        try:
            with splice(model, "resid_post.0", add_vector(VECTOR, float(index))):
                for _ in range(5):
                    meeting.wait()
                    found[index] = logits(model)
                    with capture(model, "resid_post.0") as stopped:
                        stopped.run(input_ids=input_ids())
                meeting.wait()
        except BaseException as error:  # the signal that stops a pass early is no Exception
            failures.append(error)
            meeting.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(torch.equal(found[index], expected[index]) for index in range(4))


def test_a_context_is_left_in_the_middle_of_another_threads_pass(model):
    """torch has listed the hooks of a module by then, and calls one that was taken off without keyword arguments."""
    with replaced(model, "model.layers.0.mlp.input", lambda x: x + VECTOR):
        expected = logits(model)
    entered, leave, left = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with splice(model, "mlp_in.0", lambda x: x * 0):
            entered.set()
            leave.wait(60)
        left.set()

    def edit(x: torch.Tensor) -> torch.Tensor:
        leave.set()
        assert left.wait(60)
        return x + VECTOR

    other = threading.Thread(target=work)
    with splice(model, "mlp_in.0", edit):
        other.start()
        assert entered.wait(60)
        assert torch.equal(logits(model), expected)
    other.join()


def test_generate_in_a_thread_without_the_context_says_so(model):
    sae, caught = sae_at("resid_post.0"), []

    def work() -> None:
        with pytest.warns(UserWarning, match="enter the context in the thread that calls generate") as warned:
            model.generate(input_ids(), max_new_tokens=2, pad_token_id=0)
        caught.extend(warned)

    with attach(model, sae, splice=True):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert caught


# -- gradients that are checkpointed ----------------------------------------------------------------------------------
def gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [block.mlp.up_proj.weight for block in model.model.layers]))


def loss_of(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids(), labels=input_ids(), use_cache=False).loss


@pytest.fixture(params=[False, True], ids=["not reentrant", "reentrant"])
def checkpointing(request, model) -> PreTrainedModel:
    model.gradient_checkpointing_enable({"use_reentrant": request.param})
    model.enable_input_require_grads()
    return model.train()


BORDERS = ["resid_post.0", "resid_pre.1"]
PLACES = ["resid_mid.0", "mlp_out.0", "attn_out.1", *BORDERS]
RUN_AGAIN = PLACES[:3] if HOOKS_OUTSIDE_OF_CHECKPOINTS else PLACES


@pytest.mark.parametrize("place", PLACES)
def test_inside_the_context_gradients_are_those_without_checkpointing(checkpointing, place):
    plain = copy.deepcopy(build("llama")).train()
    sae = SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=place))
    for keep_error in (False, True):
        with attach(plain, sae, splice=True, keep_error=keep_error):
            expected = gradients(plain, loss_of(plain))
        with attach(checkpointing, sae, splice=True, keep_error=keep_error):
            found = backward(checkpointing, loss_of(checkpointing))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)


def backward(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    """As `gradients`, by the only way that reentrant checkpointing allows."""
    model.zero_grad()
    loss.backward()
    return [block.mlp.up_proj.weight.grad for block in model.model.layers]


@pytest.mark.parametrize("place", RUN_AGAIN)
def test_after_the_context_or_another_call_the_backward_pass_is_refused(checkpointing, place):
    with splice(checkpointing, place, add_vector(VECTOR)):
        loss = loss_of(checkpointing)
    with pytest.raises(HookPointError, match="has been left: call backward"):
        loss.backward()
    with splice(checkpointing, place, add_vector(VECTOR)):
        loss = loss_of(checkpointing)
        loss_of(checkpointing)
        with pytest.raises(HookPointError, match="has been called since"):
            loss.backward()


@pytest.mark.skipif(not HOOKS_OUTSIDE_OF_CHECKPOINTS, reason="an older transformers runs these hooks again")
@pytest.mark.parametrize("place", BORDERS)
def test_at_a_block_s_border_the_backward_pass_may_come_later(checkpointing, place):
    plain = copy.deepcopy(build("llama")).train()
    with splice(plain, place, add_vector(VECTOR)):
        expected = gradients(plain, loss_of(plain))
    with splice(checkpointing, place, add_vector(VECTOR)):
        loss = loss_of(checkpointing)
    for one, other in zip(backward(checkpointing, loss), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_read_has_gradients_or_is_refused(checkpointing, request, place):
    """A loss of features beside the model's own would else lose its part without a word."""
    plain = copy.deepcopy(build("llama")).train()
    sae = SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point=place))
    with attach(plain, sae) as run:
        expected = gradients(plain, loss_of(plain) + run.features.values.square().sum())
    reentrant = "not reentrant" not in request.node.name
    with attach(checkpointing, sae) as run:
        loss = loss_of(checkpointing)
        if reentrant and place in RUN_AGAIN:
            with pytest.raises(RuntimeError, match="use_reentrant"):
                _ = run.features
            with torch.no_grad():
                assert run.features.shape == (2, 5, 48)
            with (
                capture(checkpointing, place, stop=False, detach=False),
                pytest.raises(HookPointError, match="detach"),
            ):
                loss_of(checkpointing)
            return
        found = backward(checkpointing, loss + run.features.values.square().sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_torch_s_own_wrapper_runs_blocks_again_too(model):
    """FSDP's activation checkpointing puts every block into it."""
    model.train()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, GradientCheckpointingLayer))
    place = "model.layers.0._checkpoint_wrapped_module.self_attn.output"
    plain = copy.deepcopy(build("llama")).train()
    with splice(plain, "attn_out.0", add_vector(VECTOR)):
        loss_of(plain).backward()
    with splice(model, place, add_vector(VECTOR)):
        loss_of(model).backward()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    with splice(model, place, add_vector(VECTOR)):
        loss = loss_of(model)
    with pytest.raises(HookPointError, match="has been left: call backward"):
        loss.backward()


def around_the_loss(model: PreTrainedModel, reentrant: bool):
    embeddings = model.get_input_embeddings()(input_ids())
    return checkpoint(
        lambda x: model(inputs_embeds=x, labels=input_ids(), use_cache=False).loss, embeddings, use_reentrant=reentrant
    )


def around_the_model(model: PreTrainedModel, reentrant: bool):
    embeddings = model.get_input_embeddings()(input_ids())
    logits = checkpoint(lambda x: model(inputs_embeds=x, use_cache=False).logits, embeddings, use_reentrant=reentrant)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids()[:, 1:].flatten())


def inside_of_a_block(model: PreTrainedModel, reentrant: bool):
    """As code of a model's own does that does not ask transformers for it."""
    mlp = model.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: checkpoint(own, x, use_reentrant=reentrant)
    try:
        return loss_of(model)
    finally:
        mlp.forward = own


USERS_OWN = [around_the_loss, around_the_model, inside_of_a_block]
WRITTEN_AGAIN = {around_the_loss: "resid_post.0", around_the_model: "attn_out.1", inside_of_a_block: "mlp_act.0"}


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("own", USERS_OWN, ids=lambda way: way.__name__)
def test_checkpoints_that_nothing_on_the_model_tells_of_are_seen(model, own, reentrant):
    """Past the context the gradients were those of the model without the edit, and nobody said so."""
    model.train()
    place = WRITTEN_AGAIN[own]
    untouched = gradients(model, loss_of(model))
    with splice(model, place, lambda x: x * 0.5):
        expected = gradients(model, loss_of(model))
    assert all(float((one - other).abs().max()) > 1e-4 for one, other in zip(expected, untouched, strict=True))
    if reentrant and own is not inside_of_a_block:
        with splice(model, place, lambda x: x * 0.5), pytest.raises(HookPointError, match="pass use_reentrant=False"):
            own(model, reentrant)
        return
    with splice(model, place, lambda x: x * 0.5):
        for one, other in zip(backward(model, own(model, reentrant)), expected, strict=True):
            torch.testing.assert_close(one, other)
        first, _ = own(model, reentrant), own(model, reentrant)
        with pytest.raises(HookPointError, match="has been called since"):
            first.backward()
        loss = own(model, reentrant)
    with pytest.raises(HookPointError, match="has been left: call backward"):
        loss.backward()


@pytest.mark.parametrize("own", USERS_OWN, ids=lambda way: way.__name__)
def test_what_is_read_in_such_a_checkpoint_has_gradients_or_is_refused(model, own):
    model.train()
    place = WRITTEN_AGAIN[own]
    sae = SAE.from_config(TopKSAEConfig(d_in=24 if "act" in place else 16, n_features=48, k=6, hook_point=place))
    with attach(model, sae) as run:
        expected = gradients(model, loss_of(model) + run.features.values.square().sum())
        loss = own(model, False)
        found = backward(model, loss + run.features.values.square().sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with attach(model, sae) as run:
        own(model, True)
        with pytest.raises(RuntimeError, match="use_reentrant"):
            _ = run.features
        with torch.no_grad():
            assert run.features.shape == (2, 5, 48)


# -- copies -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_that_would_keep_the_hooks_is_refused(model, copied):
    """The copy's `generate` ran the model that it was copied from, also after the context."""
    before = count_hooks(model)  # transformers leaves its own where hidden states were asked for once
    for part in (model, model.model, model.model.layers[0]):
        with splice(model, "resid_post.0", add_vector(VECTOR)), pytest.raises(HookPointError, match="outside of the"):
            copied(part)
    again = copy.deepcopy(model)
    assert count_hooks(again) == before and torch.equal(logits(again), logits(model))


# -- what is left behind ----------------------------------------------------------------------------------------------
def read(model):
    with capture(model, "resid_post.*") as activations:
        activations.run(input_ids=input_ids())
    return activations["resid_post.0"]


def read_with_gradients(model):
    with capture(model, "resid_post.*", stop=False, detach=False) as activations:
        activations.run(input_ids=input_ids())
        activations.output.logits.sum().backward()


def edit(model):
    with splice(model, "resid_post.0", add_vector(VECTOR)):
        logits(model)


def use_features(model):
    with attach(model, SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=6, hook_point="resid_post.0"))) as run:
        logits(model)
    return run.features


@pytest.mark.parametrize("use", [read, read_with_gradients, edit, use_features])
def test_nothing_that_passed_stays_in_memory_behind_its_context(model, use):
    """A set of 30 transcoders kept 70 MB of every pass until Python looked for circles: 6 GB after 400 passes."""
    use(model)  # what is made once
    with tensors_in_circles() as left:
        use(model)
    assert not left
