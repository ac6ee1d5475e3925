"""Some rows of a parameter, and their gradient."""

import torch

from hfsae.functional.sparse_rows import rows_at


def test_gradients_are_those_of_indexing_whatever_else_uses_the_parameter():
    chosen = torch.tensor([0, 3, 4])
    generator = torch.Generator().manual_seed(0)
    start, other = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator)
    gradients = []
    for rows_of in (rows_at, torch.Tensor.__getitem__):
        for order in (1, -1):
            parameter = start.clone().requires_grad_()
            terms = [lambda p: (p * other).sum(), lambda p, of=rows_of: of(p, chosen).square().sum()][::order]
            sum(term(parameter) for term in terms).backward()
            assert parameter.grad is not None and parameter.grad.layout == torch.strided
            gradients.append(parameter.grad)
    for gradient in gradients[1:]:
        assert torch.equal(gradient, gradients[0])


def test_only_the_chosen_rows_are_in_the_gradient():
    parameter = torch.ones(4, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(rows_at(parameter, torch.tensor([1, 2])).sum(), parameter)
    assert gradient.is_sparse and gradient.is_coalesced() and gradient._nnz() == 2
    assert gradient.to_dense().tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
