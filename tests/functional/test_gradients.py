"""Gradients inside of blocks that switch them off."""

import pytest
import torch

from hfsae.functional.gradients import gradients_on, refuse_inference_weights


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_made_inside_and_are_off_again_outside(around):
    with around():
        with gradients_on():
            x = torch.tensor(3.0, requires_grad=True)
            (x * x).backward()
        assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled() is (around is torch.inference_mode)
    assert x.grad == 6.0


def test_a_module_that_torch_cannot_differentiate_through_is_refused():
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weights of the Linear were made inside of torch.inference_mode"):
        refuse_inference_weights(module)
    refuse_inference_weights(torch.nn.Linear(2, 2))
