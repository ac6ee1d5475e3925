"""The divergence of two runs of a model, and its gradient."""

import pytest
import torch
import torch.nn.functional as F

from hfsae.data import TokenBatch
from hfsae.hooks import HookPoint
from hfsae.kl_finish import divergence
from hfsae.kl_finish.divergence import DivergenceMeter, kl_and_gradient
from tests.data.tiny import language_model

PLACE = HookPoint.parse("transformer.h.1.output")


@pytest.mark.parametrize("piece", [1, 1 << 20], ids=["in pieces", "at once"])
def test_nats_and_gradient_are_those_of_the_formula(monkeypatch, piece):
    monkeypatch.setattr(divergence, "_CPU_PIECE", piece)
    monkeypatch.setattr(divergence, "_LEAST_ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    clean, spliced, head = (torch.randn(*size, generator=generator).double() for size in ((10, 4), (10, 4), (7, 4)))
    nats, gradient = kl_and_gradient(clean, spliced, lambda rows: rows @ head.T, 7)
    leaf = spliced.clone().requires_grad_()
    expected = F.kl_div(F.log_softmax(leaf @ head.T, -1), F.softmax(clean @ head.T, -1), reduction="sum")
    assert nats.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule_out", [lambda made, mask: made.masked_fill(mask == 0, -torch.inf), torch.add])
def test_tokens_that_are_ruled_out_leave_nats_and_gradient_of_the_others(rule_out):
    generator = torch.Generator().manual_seed(0)
    clean, spliced, head = (torch.randn(*size, generator=generator).double() for size in ((10, 4), (10, 4), (7, 4)))
    allowed = torch.tensor([True, True, False, True, False, True, True])
    mask = allowed.double() if rule_out is not torch.add else torch.zeros(7).double().masked_fill(~allowed, -torch.inf)
    nats, gradient = kl_and_gradient(clean, spliced, lambda rows: rule_out(rows @ head.T, mask), 7)
    some = head[allowed]
    leaf = spliced.clone().requires_grad_()
    expected = F.kl_div(F.log_softmax(leaf @ some.T, -1), F.softmax(clean @ some.T, -1), reduction="sum")
    assert nats.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-10, atol=1e-14)


def test_nothing_to_predict_is_no_divergence():
    nats, gradient = kl_and_gradient(torch.zeros(0, 4), torch.zeros(0, 4), lambda rows: rows, 4)
    assert nats == 0 and gradient.shape == (0, 4)


def meter(model, batch):
    return DivergenceMeter(model, {"": (PLACE, PLACE)}, batch, sequences=9, longest=8, autocast=False)


def a_batch(keep=None):
    ids = torch.randint(1, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    return TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool) if keep is None else keep)


def test_a_sequence_of_which_the_last_token_alone_counts():
    keep = torch.zeros(3, 8, dtype=torch.bool)
    keep[0, 7] = True
    reads = meter(language_model(), a_batch())
    found = reads.of_one(reads.read(a_batch(keep)), "", torch.zeros(1, 16))
    assert found.nats == 0 and torch.equal(found.gradients[""], torch.zeros(1, 16))


def test_what_the_model_computes_itself_changes_nothing():
    reads = meter(language_model(), a_batch())
    reading = reads.read(a_batch())
    found = reads.of_one(reading, "", reading.activations[PLACE].flatten(0, 1))
    assert abs(found.nats) < 1e-6 and found.gradients[""].abs().max() < 1e-5


def test_batches_that_were_read_before_are_looked_at_with_their_own_lower_blocks():
    """`write` answers for the blocks below from memory: of the batch that it is asked about."""
    reads = meter(language_model(), a_batch())
    first, second = a_batch(), TokenBatch(*(part.flip(1) for part in a_batch()))
    nothing = torch.zeros(24, 16)
    alone = [reads.of_one(reads.read(one), "", nothing).nats.item() for one in (first, second)]
    read = [reads.read(one) for one in (first, second)]
    assert [reads.of_one(one, "", nothing).nats.item() for one in read] == alone


def test_a_model_that_stands_no_shortcuts_gives_the_same():
    nothing = torch.zeros(24, 16)
    reads = meter(language_model(), a_batch())
    assert reads._spliced.shortcuts
    expected = reads.of_one(reads.read(a_batch()), "", nothing)
    whole = meter(language_model(), a_batch())
    whole._spliced.shortcuts = False
    found = whole.of_one(whole.read(a_batch()), "", nothing)
    assert found.nats.item() == pytest.approx(expected.nats.item(), rel=1e-5)
    assert torch.allclose(found.gradients[""], expected.gradients[""], rtol=1e-4, atol=1e-7)


def test_neither_weights_nor_their_gradients_are_touched():
    model = language_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reads = meter(model, a_batch())
    reads.of_one(reads.read(a_batch()), "", torch.zeros(24, 16))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
