"""The rows of an activation that belong to tokens."""

import pytest
import torch

from hfsae.hooks import HookPointError
from hfsae.hooks.tokens import of_tokens


def test_virtual_tokens_stand_before_the_texts_own_and_are_left_out():
    x = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    assert torch.equal(of_tokens(x, (2, 5), "here"), x)
    assert torch.equal(of_tokens(x, (2, 3), "here"), x[:, 2:])
    of_tokens(x, (2, 3), "here")[torch.ones(2, 3, dtype=torch.bool)] = 0  # a view: what is written there is written
    assert not x[:, 2:].any() and x[:, :2].any()


def test_flattened_tokens_are_taken_apart():
    x = torch.randn(6, 4)
    assert torch.equal(of_tokens(x, (2, 3), "here"), x.view(2, 3, 4))


@pytest.mark.parametrize("shape", [(4, 2, 3, 8), (3, 2, 8), (5, 8), (2, 2, 8)])
def test_other_shapes_are_refused_with_what_was_seen(shape):
    with pytest.raises(HookPointError, match=r"here saw activations of shape .* for 2 x 3 tokens"):
        of_tokens(torch.zeros(shape), (2, 3), "here")
