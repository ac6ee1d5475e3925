from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.activations import ACT2FN

from hfsae.hooks.gelu import fused_gelu


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Operations(TorchDispatchMode):
    """The names of the operations that run inside of it."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_spelt_out_activations_are_one_operation_inside_and_eight_outside(name: str):
    activation, x = nn.Sequential(ACT2FN[name]), torch.linspace(-6, 6, 1001)
    expected = activation(x)
    with Operations() as inside, fused_gelu(activation):
        found = activation(x)
    assert inside.names == ["gelu"]
    torch.testing.assert_close(found, expected)
    with Operations() as outside:
        found = activation(x)
    assert "gelu" not in outside.names and len(outside.names) > 5
    assert torch.equal(found, expected)


def test_gpt2_gives_the_same_logits_and_is_left_as_it_was_after_an_exception():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50)).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(KeyError), fused_gelu(model):
            torch.testing.assert_close(model(ids).logits, expected)
            raise KeyError
        assert torch.equal(model(ids).logits, expected)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_forward_that_something_else_has_replaced_stays():
    activation = ACT2FN["gelu_new"]
    activation.forward = torch.zeros_like
    with fused_gelu(activation):
        assert not activation(torch.ones(3)).any()
    assert activation.forward is torch.zeros_like


def test_models_that_use_torchs_own_gelu_are_not_touched():
    model = GPTNeoXForCausalLM(GPTNeoXConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=9))
    with fused_gelu(model):
        assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_looked_up_and_are_torchs_own_to_the_bit(dtype: torch.dtype, one_thread: None):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = torch.stack([every, every.flip(0)]).T  # no contiguous one
    activation = nn.Sequential(ACT2FN["gelu_new"])
    with torch.no_grad(), fused_gelu(activation), Operations() as inside:
        found = activation(x)
    assert inside.names[-1] == "index_select"
    expected = F.gelu(x, approximate="tanh")
    assert found.shape == x.shape and torch.equal(found.view(torch.int16), expected.contiguous().view(torch.int16))
    with fused_gelu(activation), Operations() as inside:
        activation(x.clone().requires_grad_())
    assert inside.names[-1] == "gelu"
