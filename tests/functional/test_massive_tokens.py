"""Massive tokens are found, with the directions that they lie in."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.massive_tokens import MassiveTokens, directions_apart

WIDTH = 32


def directions(count: int = 2) -> Tensor:
    return F.normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(9)), dim=1)


def rows(count: int, massive: dict[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Tokens off centre as an MLP reads and writes them; massive ones in some places, by which direction."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=draw) + 1
    x = F.normalize(x, dim=1) * WIDTH**0.5 * (1 + 0.05 * torch.randn(count, 1, generator=draw))
    for place, which in massive.items():
        x[place] = x.mean(0) + 25 * directions()[which] + 0.1 * torch.randn(WIDTH, generator=draw)
    y = torch.relu(x @ torch.randn(WIDTH, 8, generator=torch.Generator().manual_seed(4)))
    y[list(massive)] = 1.0  # they write little
    return x, y


def test_ordinary_tokens_have_no_direction_and_rows_stay_as_they_are_bit_for_bit():
    seen, (x, _) = MassiveTokens(WIDTH), rows(500, {}, 1)
    assert not seen.see(x).any() and not seen.directions.any()
    assert torch.equal(seen.without(x, 0), x)


def test_directions_span_massive_tokens_of_one_step_and_of_a_later_one():
    seen = MassiveTokens(WIDTH)
    for step, massive in enumerate([{3: 0}, {}, {7: 1, 100: 0}, {8: 1}]):
        x, _ = rows(500, massive, step)
        assert seen.see(x).nonzero()[:, 0].tolist() == sorted(massive)
    found = seen.directions[0]
    assert (found != 0).any(1).sum() == 2  # no third one for what differs among massive tokens of a kind
    assert torch.allclose(found[:2] @ found[:2].T, torch.eye(2), atol=1e-5)
    left = torch.linalg.lstsq(found[:2].T, directions().T).solution
    assert torch.allclose(found[:2].T @ left, directions().T, atol=0.1)
    assert seen.without(25 * directions(), 0).norm(dim=1).max() < 2.5


def test_heavy_tails_are_not_massive():
    """Lengths that differ among all tokens, as those of a residual stream."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2000, WIDTH, generator=draw) * (0.4 * torch.randn(2000, 1, generator=draw)).exp()
    assert (x.norm(dim=1) > 2 * x.norm(dim=1).median()).sum() > 50
    assert MassiveTokens(WIDTH).see(x).float().mean() < 0.01


def test_each_layer_has_directions_of_its_own():
    first, second = rows(500, {3: 0}, 0)[0], rows(500, {8: 1}, 1)[0]
    seen = MassiveTokens(2 * WIDTH, 2)
    assert seen.see(torch.cat([first, second], 1)).nonzero()[:, 0].tolist() == [3, 8]
    of_each = F.cosine_similarity(seen.directions[:, 0].unsqueeze(1), directions().unsqueeze(0), dim=2)
    assert (of_each.abs().diagonal() > 0.95).all() and (of_each.abs() > 0.95).sum() == 2


def test_directions_in_which_massive_tokens_alone_are_long_point_to_them():
    x, _ = rows(500, {3: 0, 7: 1, 100: 0}, 1)
    found, ordinary = directions_apart(x)
    assert (~ordinary).nonzero()[:, 0].tolist() == [3, 7, 100]
    assert torch.allclose(found @ found.T, torch.eye(2), atol=1e-5)
    along = (x - x[ordinary].mean(0)) @ found.T
    assert (along[[3, 7, 100]].amax(0) > 10).all() and along[ordinary].amax() < 4
    mirrored, _ = directions_apart(-x)
    assert torch.allclose(mirrored, -found, atol=1e-5)


def test_a_direction_is_no_massive_token_s_own_where_others_are_nearly_as_long_on_it():
    draw = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(1000, WIDTH, generator=draw), dim=1)
    x[:50] = 1.5 * directions()[0]
    x[7] = 2.8 * directions()[0]
    assert MassiveTokens(WIDTH).see(x).nonzero()[:, 0].tolist() == [7]
    assert not len(directions_apart(x)[0])
    x[:50] *= 0.5
    assert len(directions_apart(x)[0]) == 0  # 1.4 is no massive token any more
    x[7] *= 2
    assert len(directions_apart(x)[0]) == 1


def test_without_massive_tokens_no_direction_is_apart():
    found, ordinary = directions_apart(rows(500, {}, 1)[0])
    assert found.shape == (0, WIDTH) and ordinary.all()
