import pickle

import pytest
import torch
from accelerate.utils import convert_to_fp32
from torch.utils import _pytree as pytree

from hfsae.autoencoder.outputs import SAEOutput, StepState
from tests.architectures.variants import VARIANTS, activations, state


@pytest.fixture
def out() -> SAEOutput:
    return VARIANTS["topk"].make()(activations(5), state=state())


def test_it_unpacks_like_the_output_of_other_tools():
    sae, x = VARIANTS["topk"].make(), activations(5)
    x_hat, f = sae(x)
    torch.testing.assert_close(x_hat, sae.decode(sae.encode(x)))
    torch.testing.assert_close(f, sae.encode(x))
    assert next(iter(sae(x))).shape == x.shape and len(list(sae(x))) == 2


def test_everything_is_there_by_name_and_by_place(out: SAEOutput):
    assert list(out.keys()) == ["loss", "losses", "reconstruction", "features", "statistics"]
    assert out["loss"] is out.loss is out[0] and out.to_tuple()[2] is out.reconstruction
    assert "features" in out and dict(out.items())["features"] is out.features


def test_without_a_step_it_holds_what_there_is():
    out = VARIANTS["topk"].make()(activations(5))
    assert list(out.keys()) == ["reconstruction", "features"] and out[0] is out.reconstruction


def test_an_empty_one_unpacks_to_nothing():
    assert tuple(SAEOutput()) == (None, None)


def test_it_survives_pickling(out: SAEOutput):
    again = pickle.loads(pickle.dumps(out))
    torch.testing.assert_close(again.reconstruction, out.reconstruction)
    torch.testing.assert_close(again.features.to_dense(), out.features.to_dense())


def test_parallel_wrappers_find_the_loss_in_it(out: SAEOutput):
    """They walk outputs as trees to find the tensors that need a gradient."""
    leaves = pytree.tree_leaves(out)
    assert any(leaf is out.loss for leaf in leaves)
    rebuilt = pytree.tree_map(lambda leaf: leaf, out)
    assert type(rebuilt) is SAEOutput and rebuilt.loss is out.loss and rebuilt.features is out.features


def test_accelerate_turns_it_to_float32_and_keeps_the_rest(out: SAEOutput):
    """What a model prepared for mixed precision returns has gone through this."""
    out.reconstruction = out.reconstruction.bfloat16()
    wide = convert_to_fp32(out)
    assert type(wide) is SAEOutput and wide.reconstruction.dtype == torch.float32
    assert wide.features is out.features and wide.statistics is out.statistics
    assert wide.loss.requires_grad and wide.losses.keys() == out.losses.keys()


def test_a_step_needs_nothing_said_to_be_a_plain_one():
    step = StepState()
    assert (step.step, step.sparsity_coefficient, step.n_dead, step.auxk_alpha, step.path) == (0, 0.0, 0, 0.0, "auto")
    assert step.dead is None and step.target_l0 is None and step.world_size == 1


def test_repr_is_one_line_of_shapes_with_the_loss(out: SAEOutput):
    shown = repr(out)
    assert "\n" not in shown and len(shown) < 300
    assert f"loss={out.loss.item():.4g}" in shown and "reconstruction=(5, " in shown and "SparseFeatures(" in shown
