import json
import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import SAE, MatryoshkaSAEConfig
from hfsae.autoencoder.initialisation import initialise
from hfsae.functional import reference
from tests.architectures.variants import VARIANTS, K, activations, state, weights_of


def make(**options):
    return VARIANTS["matryoshka"].make(**options)


def config(**options):
    return MatryoshkaSAEConfig(**{"d_in": 6, "n_features": 24, "k": K, **options})


# -- the nested widths ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "widths"),
    [
        ({"n_features": 512}, [32, 64, 128, 256, 512]),
        ({"n_features": 24}, [1, 3, 6, 12, 24]),
        ({"n_features": 3}, [1, 3]),
        ({"prefix_sizes": [5, 24]}, [5, 24]),
        ({"prefix_sizes": [24]}, [24]),
    ],
)
def test_widths_halve_four_times_unless_they_are_given(given: dict, widths: list[int]):
    assert config(**given).prefixes == widths


@pytest.mark.parametrize("sizes", [[], [12], [12, 6, 24], [6, 6, 24], [0, 24], [12, 48]])
def test_widths_rise_to_the_number_of_features(sizes: list[int]):
    with pytest.raises(StrictDataclassError, match="must rise to n_features=24, got"):
        config(prefix_sizes=sizes)


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1], [-1, 2], [0, 0]])
def test_there_is_a_weight_for_each_width(weights: list):
    with pytest.raises(StrictDataclassError, match=r"must be 2 numbers, one for each of \[12, 24\]"):
        config(prefix_sizes=[12, 24], prefix_weights=weights)


def test_a_balance_weighs_each_prefix_as_a_share_of_the_next_wider_one():
    given = {"prefix_sizes": [6, 12, 24]}
    assert config(**given).prefix_shares == pytest.approx([9 / 37, 12 / 37, 16 / 37])
    assert config(**given, prefix_balance=1).prefix_shares == pytest.approx([1 / 3] * 3)
    assert config(**given, prefix_balance=0.5).prefix_shares == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert config(**given, prefix_weights=[0, 3, 1]).prefix_shares == [0, 0.75, 0.25]


def test_a_file_that_tells_no_balance_is_of_a_version_that_weighed_prefixes_alike(tmp_path):
    """It was read as one of 0.75: cards told a balance that it was not trained with, and training went on with it."""
    make(prefix_sizes=[6, 12, 24]).save_pretrained(tmp_path)
    assert SAE.from_pretrained(tmp_path).config.prefix_balance == 0.75
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["prefix_balance"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert SAE.from_pretrained(tmp_path).config.prefix_shares == pytest.approx([1 / 3] * 3)
    assert SAE.from_pretrained(tmp_path, prefix_balance=0.5).config.prefix_balance == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix_balance": 0}, "prefix_balance must be above 0, got 0"),
        ({"prefix_balance": 0.5, "prefix_sizes": [12, 24], "prefix_weights": [1, 1]}, "give one of the two"),
        ({"orthogonality": -0.1}, "orthogonality must be 0 or more, got -0.1"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(options: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        config(**options)


# -- the loss ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_weights_count_relative_to_their_sum(path: str):
    sae, x = make(prefix_sizes=[2, 12, 24], prefix_weights=[0, 3, 1]), activations(50)
    z, _ = reference.batch_topk(sae.scaled(x), weights_of(sae), k=K)
    errors = [
        reference.squared_error(z[:, :m] @ sae.W_dec[:m] + sae.b_dec, sae.scaled(x)) for m in (12, 24)
    ]  # fmt: skip
    torch.testing.assert_close(sae(x, state=state(path)).loss, (3 * errors[0] + errors[1]) / 4)


def test_with_one_width_it_is_batch_topk():
    sae, x = make(prefix_sizes=[24]), activations(50)
    _, loss = reference.batch_topk(sae.scaled(x), weights_of(sae), k=K)
    torch.testing.assert_close(sae(x, state=state()).loss, loss)


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_the_error_of_the_whole_is_reported_beside_the_mean_of_all(path: str):
    sae, x = make(), activations(50)
    out = sae(x, state=state(path))
    whole = reference.squared_error(out.reconstruction * sae.input_scale, sae.scaled(x))
    torch.testing.assert_close(out.statistics.squared_error, whole.detach().float(), check_dtype=False)
    assert (out.losses["mse"] - whole).abs() > 1


def test_close_rows_count_in_proportion_to_the_variance():
    """Two rows 20 degrees apart, all others at right angles."""
    sae, x = make(d_in=24, orthogonality=0.5), activations(40, 24)
    radians = math.radians(20)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(24))
        sae.W_dec[1, :2] = torch.tensor([math.cos(radians), math.sin(radians)])
    variance = sae.scaled(x).var(0, correction=0).sum()
    found = sae(x, state=state()).losses["orthogonality"]
    torch.testing.assert_close(found, 0.5 * variance * 2 * math.cos(radians) ** 2 / 24)


def test_training_keeps_rows_further_apart_with_orthogonality_than_without():
    """Of 32 features for 8 directions many learn the same one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2048, 8, generator=generator).square() @ torch.randn(8, 16, generator=generator)
    closeness = {}
    for orthogonality in (0.0, 1.0):
        torch.manual_seed(0)
        options = {"d_in": 16, "n_features": 32, "prefix_sizes": [8, 32], "orthogonality": orthogonality}
        sae = initialise(SAE.from_config(config(**options)), x)
        optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
        for step in range(60):
            sae(x, state=state(step=step)).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        rows = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
        closeness[orthogonality] = (rows @ rows.T).fill_diagonal_(-1.0).amax(1).mean().item()
    assert closeness[1.0] < closeness[0.0] - 0.1


def test_nested_saes_are_better_for_being_trained_so():
    """On the same data and steps as a batch_topk SAE, whose first features are anybody's."""
    x = activations(2048, 16, dtype=torch.float32)
    errors = {}
    for sizes in ([8, 32], [32]):
        torch.manual_seed(0)
        sae = initialise(SAE.from_config(config(d_in=16, n_features=32, k=6, prefix_sizes=sizes)), x)
        optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
        for _ in range(100):
            sae(x, state=state()).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        z = sae(x, state=state()).features.to_dense()
        first = (z[:, :8] @ sae.W_dec[:8] + sae.b_dec) - sae.scaled(x)
        errors[len(sizes)] = first.square().sum(1).mean().item()
    assert errors[2] < 0.9 * errors[1]


# -- cutting a prefix out ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("m", [1, 3, 6, 12, 24])
def test_a_prefix_has_the_features_that_the_whole_has_among_its_first(m: int):
    sae, x = make(), activations(40)
    cut = sae.prefix(m)
    torch.testing.assert_close(cut.encode(x), sae.encode(x)[:, :m])
    features = sae.encode(x)
    features[:, m:] = 0
    torch.testing.assert_close(cut(x).reconstruction, sae.decode(features))
    assert cut.config.prefix_balance == sae.config.prefix_balance
    assert cut.config.prefixes == [size for size in (1, 3, 6, 12, 24) if size <= m] and sae.config.n_features == 24


def test_a_prefix_is_an_sae_of_its_own(tmp_path):
    sae = make(prefix_sizes=[6, 12, 24], prefix_weights=[0, 0, 1], dtype=torch.float32)
    cut = sae.prefix(12)
    cut.save_pretrained(tmp_path)
    x = activations(5, dtype=torch.float32)
    assert torch.equal(SAE.from_pretrained(tmp_path).encode(x), cut.encode(x))
    cut(x, state=state()).loss.backward()
    with torch.no_grad():
        cut.W_dec.zero_()
    assert sae.W_dec.any(dim=1).all() and sae.W_dec.grad is None


def test_it_is_cut_where_it_was_trained_to_be():
    with pytest.raises(ValueError, match=r"trained to be cut at \[1, 3, 6, 12, 24\] features, not at 7"):
        make().prefix(7)


def test_its_parts_are_its_prefixes():
    sae = make(prefix_sizes=[6, 12, 24])
    assert {name: part.config.n_features for name, part in sae.parts().items()} == {"first 6": 6, "first 12": 12}
    assert VARIANTS["topk"].make().parts() == {}
