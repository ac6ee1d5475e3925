"""Latent scaling against least squares by numpy, feature by feature."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hfsae import diff
from hfsae.architectures import Crosscoder
from hfsae.diffing.scaling import DiffSums
from tests.architectures.variants import CROSSCODERS, VARIANTS, activations
from tests.diffing import planted

WIDTHS = {"d_in": 6, "source_names": ["base", "tuned"], "source_widths": [3, 3]}


def made(name: str) -> Crosscoder:
    return VARIANTS[name].make(**WIDTHS).eval()  # type: ignore[return-value]


def by_hand(sae: Crosscoder, x: Tensor) -> dict[str, np.ndarray]:
    """Every β from `lstsq` on a tall table: what one feature writes along its longest row, token by token."""
    z = sae.encode(x).detach().numpy()
    scale = sae.input_scale.numpy().repeat(3)
    held, bias = x.numpy() * scale, sae.b_dec.detach().numpy()
    rows = sae.decoder_rows.detach().numpy()
    found = {name: np.full((z.shape[1], 2), np.nan) for name in ("error", "reconstruction", "activation")}
    for j in range(z.shape[1]):
        if not z[:, j].any():
            continue
        own = rows[j].reshape(2, 3)
        longest = own[np.linalg.norm(own, axis=1).argmax()]
        for source in range(2):
            part = slice(3 * source, 3 * source + 3)
            written, others = z @ rows[:, part], np.delete(z, j, 1) @ np.delete(rows, j, 0)[:, part]
            targets = {
                "error": held[:, part] - bias[part] - others,
                "reconstruction": written,
                "activation": held[:, part] - bias[part],
            }
            column = np.outer(z[:, j], longest).reshape(-1, 1)
            for name, target in targets.items():
                found[name][j, source] = np.linalg.lstsq(column, target.reshape(-1), rcond=None)[0][0]
    return found


@pytest.mark.parametrize("name", CROSSCODERS)
def test_every_scale_is_that_of_least_squares(name: str):
    sae, x = made(name), activations(300)
    sums = DiffSums(sae)
    sums.add(x[:100])
    sums.add(dict(zip(("base", "tuned"), x[100:].split(3, 1), strict=True)))
    expected = by_hand(sae, x)
    scaling = sums.scaling()
    assert scaling is not None
    for kind, scales in scaling._asdict().items():
        np.testing.assert_allclose(scales.numpy(), expected[kind], rtol=2e-4, atol=2e-5)
    assert sums.n_tokens == 300


@pytest.mark.parametrize("name", CROSSCODERS)
def test_firing_and_explained_variance_are_those_of_the_dense_features(name: str):
    sae, x = made(name), activations(300)
    sums = DiffSums(sae)
    for rows in x.split(70):
        sums.add(rows)
    z, firing = sae.encode(x).detach(), sums.firing()
    assert firing.tokens_firing.tolist() == (z > 0).sum(0).tolist()
    torch.testing.assert_close(firing.maximum.double(), z.amax(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(firing.mean, z.sum(0) / (z > 0).sum(0).clamp(min=1), rtol=1e-5, atol=1e-6)
    missed = sae.split((x - sae(x).reconstruction).detach())
    for source, part in sae.split(x).items():
        expected = 1 - missed[source].square().sum() / (part - part.mean(0)).square().sum()
        assert sums.explained_variance()[source] == pytest.approx(expected.item(), rel=1e-4)


def test_what_was_planted_comes_back():
    sae = planted.crosscoder()
    sums = DiffSums(sae)
    sums.add(planted.activations())
    scaling = sums.scaling()
    assert scaling.error[planted.SHRUNK].tolist() == pytest.approx([0.6, 1.0], abs=0.02)
    assert scaling.error[planted.TUNED_ONLY].tolist() == pytest.approx([0.0, 1.0], abs=0.02)
    assert scaling.reconstruction[planted.DECOUPLED].tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert scaling.error[planted.PARTLY].tolist() == pytest.approx([0.5, 1.0], abs=0.02)
    assert scaling.error[planted.DEAD].isnan().all()


def test_sources_of_unequal_widths_have_no_scaling_and_nothing_at_all_is_refused():
    unequal = VARIANTS["crosscoder"].make().eval()
    sums = DiffSums(unequal)  # type: ignore[arg-type]
    sums.add(activations(50))
    assert sums.scaling() is None
    assert sums.firing().tokens_firing.tolist() == (unequal.encode(activations(50)) > 0).sum(0).tolist()
    sums = DiffSums(made("crosscoder"))
    sums.add(activations(0))
    with pytest.raises(ValueError, match="no token of the text counts"):
        sums.scaling()


def test_activations_that_are_no_finite_numbers_are_refused():
    rows = torch.cat([*planted.activations(20).values()], 1)
    rows[3, 5] = torch.nan
    with pytest.raises(ValueError, match="no finite number: sources cannot be compared"):
        diff(planted.crosscoder(), activations=rows)
