import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae import SAE, BatchTopKSAEConfig, JumpReLUSAEConfig, StandardSAEConfig, TopKSAEConfig
from hfsae.autoencoder.initialisation import geometric_median, initialise
from hfsae.autoencoder.outputs import StepState
from tests.architectures.variants import ARCHITECTURES, HAVE_K, OF_ONE_SOURCE, TIED, VARIANTS, activations

D_IN, N_FEATURES = 16, 128


def fresh(name: str = "topk", **options) -> SAE:
    """An SAE as `from_config` makes it, not yet touched by data."""
    if "topk" in name:
        options.setdefault("k", 8)
    config = VARIANTS[name].make(D_IN, N_FEATURES, **options).config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SAE.from_config(config)


def raw(n_tokens: int = 1024) -> Tensor:
    """Activations far from the origin, with directions of different variance and a few enormous tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_tokens, D_IN, generator=generator) * torch.linspace(0.5, 3, D_IN) + 10
    x[::200] *= 50
    return x


# -- scale and centre -------------------------------------------------------------------------------------------------
def test_the_mean_norm_of_scaled_activations_is_the_root_of_their_dimension():
    sae = initialise(fresh(), raw())
    assert sae.scaled(raw()).norm(dim=1).mean().item() == pytest.approx(D_IN**0.5, rel=1e-5)


def test_the_scale_is_left_at_1_where_the_config_says_so():
    assert initialise(fresh(scale_inputs=False), raw()).input_scale == 1


def test_the_centre_is_the_mean_or_the_geometric_median_of_scaled_activations():
    by_mean, by_median = initialise(fresh(), raw(), "mean"), initialise(fresh(), raw(), "geometric_median")
    torch.testing.assert_close(by_mean.b_dec.data, by_mean.scaled(raw()).mean(0))
    torch.testing.assert_close(by_median.b_dec.data, geometric_median(by_median.scaled(raw())))
    # Half a percent of tokens are 50 times as large: the mean follows them, the median does not.
    typical = by_mean.scaled(raw()).median(0).values
    assert (by_median.b_dec - typical).norm() < 0.2 * (by_mean.b_dec - typical).norm()


@pytest.mark.parametrize("transform", ["center", "layer_norm"])
def test_scale_and_centre_are_of_the_transformed_activations(transform: str):
    sae = initialise(fresh(input_transform=transform), raw(), "mean")
    assert sae.scaled(raw()).norm(dim=1).mean().item() == pytest.approx(D_IN**0.5, rel=1e-5)
    torch.testing.assert_close(sae.b_dec.data, sae.scaled(raw()).mean(0))


# -- how many are active ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu"])
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}, {"subtract_b_dec": False}], ids=str)
def test_as_many_features_start_active_as_are_wanted(name: str, options: dict):
    x = torch.randn(2048, D_IN, generator=torch.Generator().manual_seed(0))
    few, many = (initialise(fresh(name, **options), x, active=active) for active in (6, 24))
    for sae, active in ((few, 6), (many, 24)):
        found = (sae.encode(x) != 0).sum(1).float()
        assert found.median() == pytest.approx(active, abs=1) and found.mean() == pytest.approx(active, rel=0.25)


def test_more_than_are_above_0_are_not_made_active():
    x = torch.randn(2048, D_IN, generator=torch.Generator().manual_seed(0))
    assert torch.equal(initialise(fresh("standard"), x, active=500).encoder.bias, torch.zeros(N_FEATURES))


# -- gain and thresholds ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in TIED])
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}, {"subtract_b_dec": False}], ids=str)
def test_no_factor_on_the_features_would_bring_the_reconstruction_closer(name: str, options: dict):
    sae = fresh(name, **options)
    with torch.no_grad():
        sae.W_dec *= 3  # so that it matters whether rows are rescaled
    initialise(sae, raw(), "mean")
    x = sae.scaled(raw()) - sae.b_dec
    written = sae.scaled_reconstruction(sae.scaled(raw())) - sae.b_dec
    assert ((written * x).sum() / written.square().sum()).item() == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        TopKSAEConfig(d_in=D_IN, n_features=512, k=64),
        BatchTopKSAEConfig(d_in=D_IN, n_features=512, k=1),
        StandardSAEConfig(d_in=D_IN, n_features=512),
        JumpReLUSAEConfig(d_in=D_IN, n_features=512, initial_threshold=0.05),
        JumpReLUSAEConfig(d_in=D_IN, n_features=512, initial_threshold=1.0, bandwidth=0.1),
        JumpReLUSAEConfig(d_in=D_IN, n_features=512, initial_l0=4, bandwidth=2.0),
    ],
    ids=lambda config: f"{type(config).__name__}",
)
def test_the_initial_error_is_at_most_the_variance_at_32x(config):
    torch.manual_seed(0)
    sae = initialise(SAE.from_config(config), raw())
    mse = sae(raw(), state=StepState()).losses["mse"]
    assert mse <= sae.scaled(raw()).var(0, correction=0).sum()


def test_batch_topk_starts_with_a_threshold_that_lets_k_through():
    """The untrained SAE is a baseline beside trained ones: at the same number of active features."""
    sae = initialise(fresh("batch_topk"), raw())
    assert (sae.encode(raw()) != 0).sum() == 8 * 1024


@pytest.mark.parametrize("active", [None, 24])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("gated", "abs_topk", *TIED)])
def test_an_aligned_one_starts_with_products_of_1_and_no_more_error_than_variance(name: str, active: int | None):
    """At 16x, without the factor on the encoder that others start with."""
    options = {"k": 32} if name in HAVE_K else {}
    config = VARIANTS[name].make(24, 384, aligned=True, **options).config
    torch.manual_seed(0)
    x = 7 * activations(1024, 24, dtype=torch.float32) + 40 * activations(1, 24, dtype=torch.float32, seed=2)
    sae = initialise(SAE.from_config(config), x, active=active)
    products = (sae.encoder_rows * sae.decoder_rows).sum(1)
    torch.testing.assert_close(products, torch.ones(384), rtol=0, atol=1e-5)
    out = sae(x, state=StepState(target_l0=24.0))
    assert out.losses["mse"] <= sae.scaled(x).var(0, correction=0).sum() and out.statistics.l0 > 0


# -- massive tokens ---------------------------------------------------------------------------------------------------
STAND_FOR_MASSIVE_TOKENS = [name for name in ARCHITECTURES if name not in ("abs_topk", *TIED)]


def with_massive_tokens(share: float = 0.01) -> tuple[Tensor, Tensor]:
    """Activations of which some are 40 times as long, all in one direction; and which these are."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2048, D_IN, generator=draw)
    massive = torch.rand(2048, generator=draw) < share
    direction = F.normalize(torch.randn(D_IN, generator=draw), dim=0)
    return x + massive.float().unsqueeze(1) * 160 * direction, massive


@pytest.mark.parametrize("name", STAND_FOR_MASSIVE_TOKENS)
def test_one_feature_stands_for_massive_tokens_and_fires_on_no_other(name: str):
    x, massive = with_massive_tokens()
    sae = initialise(fresh(name), x, active=8)
    scaled = sae.scaled(x)
    features = sae.encode(x)
    assert features[~massive, 0].max() <= 1e-4
    assert (features[massive, 1:].amax(1) < 0.25 * features[massive, 0]).all()
    error = (sae.scaled_reconstruction(scaled) - scaled)[massive].norm(dim=1)
    assert (error < 0.15 * scaled[massive].norm(dim=1)).all()  # about what an ordinary token is long


@pytest.mark.parametrize("name", STAND_FOR_MASSIVE_TOKENS)
def test_ordinary_tokens_start_as_they_would_without_massive_ones(name: str):
    x, massive = with_massive_tokens()
    alone, beside = initialise(fresh(name), x[~massive], active=8), initialise(fresh(name), x, active=8)

    def unexplained(sae: SAE) -> Tensor:
        scaled = sae.scaled(x[~massive])
        return (sae.scaled_reconstruction(scaled) - scaled).square().sum() / (scaled - scaled.mean(0)).square().sum()

    assert unexplained(beside) < unexplained(alone) + 0.08  # one of 16 dimensions is left out
    assert not (fresh(name).W_dec == initialise(fresh(name), x[~massive]).W_dec).all(1).logical_not().any()


def test_a_transcoder_starts_without_features_of_massive_tokens():
    """What is to be written there says nothing of what is read."""
    x, _ = with_massive_tokens()
    config = TopKSAEConfig(
        d_in=D_IN, d_out=4, n_features=N_FEATURES, k=8, target_hook_point="mlp_out.0", subtract_b_dec=False
    )
    sae = SAE.from_config(config)
    rows = F.normalize(sae.encoder.weight, dim=1)
    initialise(sae, x, target=x[:, :4])
    torch.testing.assert_close(F.normalize(sae.encoder.weight, dim=1), rows)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initialising_again_changes_nothing_more(name: str):
    sae = initialise(fresh(name), raw())
    before = {n: t.clone() for n, t in sae.state_dict().items()}
    initialise(sae, raw())
    torch.testing.assert_close(dict(sae.state_dict()), before, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_without_any_variance_leave_finite_weights(name: str):
    sae = initialise(fresh(name), raw(1).expand(10, D_IN))
    assert all(tensor.isfinite().all() for tensor in sae.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_activations_start_it_as_wide_ones_do(dtype: torch.dtype):
    from_narrow, from_wide = initialise(fresh(), raw().to(dtype)), initialise(fresh(), raw().to(dtype).float())
    torch.testing.assert_close(dict(from_narrow.state_dict()), dict(from_wide.state_dict()))


def test_it_gives_back_the_sae_without_gradients():
    sae = fresh()
    assert initialise(sae, raw()) is sae
    assert all(p.requires_grad and p.grad is None for p in sae.parameters())


def test_what_cannot_be_started_is_refused():
    with pytest.raises(ValueError, match="needs activations: some thousands of tokens, got none"):
        initialise(fresh(), torch.zeros(0, D_IN))
    for bad in (torch.zeros(10, D_IN), torch.full((10, D_IN), torch.nan), torch.full((10, D_IN), torch.inf)):
        with pytest.raises(ValueError, match="needs finite activations, not all of them 0: their mean norm is"):
            initialise(fresh(), bad)
    with pytest.raises(ValueError, match="writes at layers.3.mlp.output: pass that activation as `target`"):
        initialise(transcoder("topk"), raw())
    with pytest.raises(ValueError, match="needs finite activations, not all of them 0"):
        initialise(transcoder("topk"), raw(), target=torch.zeros(1024, D_OUT))


# -- transcoders ------------------------------------------------------------------------------------------------------
D_OUT = 6


def transcoder(name: str) -> SAE:
    return fresh(name, d_out=D_OUT, subtract_b_dec=False, target_hook_point="layers.3.mlp.output")


def target() -> Tensor:
    """What a small network makes of the activations, far from the origin too."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(D_IN, 32, generator=generator), torch.randn(32, D_OUT, generator=generator)
    return torch.relu((raw() - 10) @ weights[0]) @ weights[1] - 30


@pytest.mark.parametrize("name", OF_ONE_SOURCE)
def test_a_transcoder_starts_at_the_scales_and_centres_of_what_it_reads_and_writes(name: str):
    sae = initialise(transcoder(name), raw(), target=target())
    goal = sae.scaled_target(raw(), target())
    assert sae.scaled(raw()).norm(dim=1).mean().item() == pytest.approx(D_IN**0.5, rel=1e-5)
    assert goal.norm(dim=1).mean().item() == pytest.approx(D_OUT**0.5, rel=1e-5)
    torch.testing.assert_close(sae.b_dec.data, geometric_median(goal))
    center = geometric_median(sae.scaled(raw()))
    assert (sae.encoder_rows @ center + sae.encoder_bias).abs().max() < 1e-4


@pytest.mark.parametrize("name", OF_ONE_SOURCE)
def test_a_transcoder_starts_by_writing_next_to_nothing(name: str):
    sae = initialise(transcoder(name), raw(), target=target())
    written = sae.scaled_reconstruction(sae.scaled(raw())) - sae.b_dec
    spread = sae.scaled_target(raw(), target()) - sae.b_dec
    assert (written.norm() / spread.norm()).item() == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize("name", OF_ONE_SOURCE)
def test_starting_a_transcoder_again_changes_nothing_more(name: str):
    sae = initialise(transcoder(name), raw(), target=target())
    before = {n: t.clone() for n, t in sae.state_dict().items()}
    initialise(sae, raw(), target=target())
    torch.testing.assert_close(dict(sae.state_dict()), before, rtol=1e-3, atol=1e-4)


# -- the geometric median ---------------------------------------------------------------------------------------------
def test_on_a_line_the_geometric_median_is_the_median():
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [1000.0]], dtype=torch.float64)
    assert geometric_median(points, iterations=10_000, tolerance=1e-12).item() == pytest.approx(2.0, abs=1e-2)


def test_the_geometric_median_has_a_smaller_summed_distance_than_the_mean_and_than_its_neighbours():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    median = geometric_median(points)
    summed = (points - median).norm(dim=1).sum()
    assert summed < (points - points.mean(0)).norm(dim=1).sum()
    for direction in torch.eye(3, dtype=torch.float64):
        for step in (-0.01, 0.01):
            assert summed < (points - median - step * direction).norm(dim=1).sum()


def test_a_point_that_stands_exactly_in_the_middle_is_no_trouble():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    torch.testing.assert_close(geometric_median(points), torch.zeros(2))
