"""What every architecture owes: any shape, any memory layout, any precision, and the same after every round trip."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hfsae import SAE
from hfsae.architectures import architectures
from hfsae.autoencoder.initialisation import initialise
from hfsae.functional import SparsePattern
from tests.architectures.variants import (
    ARCHITECTURES,
    CROSS_LAYER,
    CROSSCODERS,
    D_IN,
    HAVE_K,
    N_FEATURES,
    SHARE_A_BUDGET,
    TIED,
    VARIANTS,
    activations,
    scramble,
    state,
)

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_variant = pytest.mark.parametrize("name", VARIANTS)
PATHS = pytest.mark.parametrize("path", ["dense", "sparse", "auto"])
FLOAT32_ALWAYS = {"input_scale", "output_scale", "threshold"}


def tensors(sae: SAE) -> dict[str, Tensor]:
    return {**dict(sae.named_parameters()), **dict(sae.named_buffers())}


def can_be_silent(name: str) -> bool:
    """Whether low biases keep every feature from being active."""
    return VARIANTS[name].architecture not in TIED and not VARIANTS[name].make().signed


def test_nothing_registered_is_left_out_here():
    assert {*ARCHITECTURES, *CROSS_LAYER} == set(architectures())


# -- NaN in, NaN out --------------------------------------------------------------------------------------------------
@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_an_activation_that_is_nan_has_no_finite_reconstruction(name: str, dtype: torch.dtype):
    sae, x = VARIANTS[name].make().to(dtype), activations(7).to(dtype)
    x[2, 1] = torch.nan
    out = sae(x)
    others = [token for token in range(7) if token != 2]
    assert out.reconstruction[2].isnan().all() and out.reconstruction[others].isfinite().all()
    assert sae.encode(x)[2].isnan().any() and sae.encode(x)[others].isfinite().all()
    assert sae.decode(sae.encode_sparse(x), x)[2].isnan().all()
    torch.testing.assert_close(out.reconstruction[others], sae(x[others]).reconstruction)


@every_variant
@PATHS
def test_the_loss_of_a_batch_with_nan_is_nan(name: str, path: str):
    sae, x = VARIANTS[name].make(), activations(7)
    x[2, 1] = torch.nan
    assert sae(x, state=state(path)).loss.isnan()


# -- shapes and layouts -----------------------------------------------------------------------------------------------
@every_architecture
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)])
def test_any_leading_dimensions_give_what_the_flattened_tokens_give(name: str, leading: tuple[int, ...]):
    sae = VARIANTS[name].make()
    flat = activations(torch.Size(leading).numel())
    x, expected = flat.reshape(*leading, D_IN), sae(flat)
    out = sae(x)
    assert out.features.shape == sae.encode(x).shape == (*leading, N_FEATURES)
    assert out.reconstruction.shape == (*leading, D_IN)
    torch.testing.assert_close(out.reconstruction.reshape(-1, D_IN), expected.reconstruction)
    torch.testing.assert_close(sae.encode(x).reshape(-1, N_FEATURES), expected.features.to_dense())
    assert out.features.values.shape[:-1] == out.features.indices.shape[:-1] == leading


@every_variant
def test_a_step_on_sequences_is_the_step_on_their_tokens(name: str):
    """Batch-wide rules too must not take a sequence for a token or a batch."""
    sae, x = VARIANTS[name].make(), activations(12)
    flat, nested = sae(x, state=state()), sae(x.reshape(3, 4, D_IN), state=state())
    torch.testing.assert_close(nested.loss, flat.loss)
    torch.testing.assert_close(nested.statistics.tokens_firing, flat.statistics.tokens_firing)
    torch.testing.assert_close(nested.reconstruction, flat.reconstruction.reshape(3, 4, D_IN))
    assert nested.features.shape == (3, 4, N_FEATURES)


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second token": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "a slice of wider rows": lambda x: torch.cat([x, x], dim=1)[:, :D_IN],
    "sequence first": lambda x: x.reshape(2, 4, D_IN).transpose(0, 1).contiguous().transpose(0, 1),
    "one token expanded": lambda x: x[:1].expand(8, D_IN),
}


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_same(name: str, layout: str):
    x = LAYOUTS[layout](activations(8))
    assert not x.is_contiguous()
    results = []
    for batch in (x, x.contiguous()):
        sae = VARIANTS[name].make()
        out = sae(batch, state=state("sparse"))
        out.loss.backward()
        results.append((sae.encode(batch), out.loss, sae.encoder.weight.grad, sae.W_dec.grad, sae.b_dec.grad))
    torch.testing.assert_close(*results)


# -- nothing to work on -----------------------------------------------------------------------------------------------
@every_variant
@PATHS
def test_no_tokens_cost_nothing_and_move_nothing(name: str, path: str):
    sae = VARIANTS[name].make()
    dead = torch.ones(N_FEATURES, dtype=torch.bool)
    step = state(path, dead=dead, n_dead=N_FEATURES, auxk_alpha=1 / 32)
    out = sae(activations(0), state=step)
    out.loss.backward()
    # A quadratic penalty of "no features on" against a target is what it is; it must not move anything.
    assert out.loss.isfinite() and (name.startswith("jumprelu-quadratic") or out.loss == 0)
    assert all(p.grad is None or not p.grad.any() for p in sae.parameters())
    before = {n: t.clone() for n, t in tensors(sae).items()}
    sae.after_step(out.statistics, step)
    torch.testing.assert_close(tensors(sae), before)


@pytest.mark.parametrize("name", [name for name in VARIANTS if can_be_silent(name)])
@PATHS
def test_a_batch_that_activates_nothing_is_a_step_like_any_other(name: str, path: str):
    sae, x = VARIANTS[name].make(), activations(5)
    with torch.no_grad():
        sae.encoder.bias -= 100
    before = sae.threshold.clone() if name in SHARE_A_BUDGET else None
    step = state(path)
    out = sae(x, state=step)
    out.loss.backward()
    sae.after_step(out.statistics, step)
    assert out.statistics.l0 == 0 and not out.statistics.tokens_firing.any()
    assert out.features.values.shape == (5, 0)
    torch.testing.assert_close(out.reconstruction, (sae.b_dec / sae._scale_in).expand(5, -1).detach())
    assert all(p.grad is None or p.grad.isfinite().all() for p in sae.parameters())
    if before is not None:
        torch.testing.assert_close(sae.threshold, before)


# -- precision --------------------------------------------------------------------------------------------------------
@every_architecture
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_activations_of_any_float_type_are_read_in_the_precision_of_the_weights(name: str, dtype: torch.dtype):
    sae, x = VARIANTS[name].make(dtype=torch.float32), activations(5, dtype=dtype)
    out = sae(x)
    assert out.reconstruction.dtype == out.features.values.dtype == torch.float32
    torch.testing.assert_close(out.reconstruction, sae(x.float()).reconstruction)


@every_variant
@PATHS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_work_and_train(name: str, path: str, dtype: torch.dtype):
    wide = VARIANTS[name].make(dtype=torch.float32)
    narrow = copy.deepcopy(wide).to(dtype)
    x = activations(64, dtype=dtype)
    out, expected = narrow(x, state=state(path)), wide(x, state=state(path))
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and narrow(x).reconstruction.dtype == dtype
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.05, atol=0.0)
    assert all(p.grad.isfinite().all() for p in narrow.parameters() if p.grad is not None)


@every_architecture
@pytest.mark.parametrize(
    "move",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to("cpu", torch.float16)],
    ids=["to", "half", "bfloat16", "to device and dtype"],
)
def test_scales_and_thresholds_stay_in_float32_to_the_last_bit(name: str, move):
    sae = VARIANTS[name].make(dtype=torch.float32)
    before = {n: t.clone() for n, t in tensors(sae).items()}
    assert (before["input_scale"].bfloat16().float() != before["input_scale"]).all(), "the test could not fail"
    parent = move(torch.nn.Sequential(move(sae)))  # moved by itself, and as a part of something larger
    for module in (sae, parent[0]):
        for tensor_name, tensor in tensors(module).items():
            if tensor_name in FLOAT32_ALWAYS:
                assert tensor.dtype == torch.float32 and torch.equal(tensor, before[tensor_name])
            else:
                assert tensor.dtype in (torch.bfloat16, torch.float16)


@every_variant
@PATHS
def test_bfloat16_autocast_trains_with_float32_losses(name: str, path: str):
    sae, x = VARIANTS[name].make(dtype=torch.float32), activations(64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = sae(x, state=state(path))
    out.loss.backward()
    assert out.loss.dtype == torch.float32 and out.statistics.tokens_firing.dtype == torch.int64
    torch.testing.assert_close(out.loss, sae(x, state=state(path)).loss, rtol=0.05, atol=0.0)
    assert sae.encoder.weight.grad.dtype == torch.float32 and sae.encoder.weight.grad.isfinite().all()


@every_architecture
def test_under_autocast_the_active_features_values_are_float32_ones(name: str):
    sae, x = VARIANTS[name].make(dtype=torch.float32), activations(64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        features = sae.encode_sparse(x)
    assert isinstance(features.pattern, SparsePattern) and features.values.dtype == torch.float32
    found, exact = features.to_dense(), sae.encode(x)
    both = (found != 0) & (exact != 0)
    torch.testing.assert_close(found[both], exact[both], rtol=1e-5, atol=1e-5)
    assert both.sum() > 0.9 * (exact != 0).sum()


@every_variant
def test_under_autocast_some_features_are_what_they_are_among_all(name: str):
    sae, x = VARIANTS[name].make(dtype=torch.float32), activations(64, dtype=torch.float32)
    some = [5, 0, -1, 7]
    with torch.autocast("cpu", torch.bfloat16):
        among_all, alone = sae.encode(x)[..., some], sae.encode(x, some)
        sparse = sae.encode_sparse(x, some).to_dense()[..., some]
    assert alone.dtype == sparse.dtype == torch.float32 and alone.any()
    torch.testing.assert_close(alone, among_all, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sparse, among_all, rtol=1e-5, atol=1e-5)


# -- the same afterwards ----------------------------------------------------------------------------------------------
@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_changes_no_bit(name: str, dtype: torch.dtype, tmp_path: Path):
    sae = VARIANTS[name].make(dtype=dtype)
    sae.save_pretrained(tmp_path)
    x = activations(9, dtype=dtype)
    for loaded in (SAE.from_pretrained(tmp_path), type(sae).from_pretrained(tmp_path)):
        assert type(loaded) is type(sae) and not loaded.training
        assert loaded.config.to_diff_dict() == sae.config.to_diff_dict()
        expected = tensors(sae)
        assert tensors(loaded).keys() == expected.keys()
        for tensor_name, tensor in tensors(loaded).items():
            assert tensor.dtype == expected[tensor_name].dtype and torch.equal(tensor, expected[tensor_name])
        assert torch.equal(loaded.encode(x), sae.encode(x))
        assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


LOAD_AND_ENCODE = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from hfsae import SAE
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]
saes = {path.name: SAE.from_pretrained(path) for path in sorted(folder.iterdir()) if path.is_dir()}
features = {f"{name}.{n}": sae.encode(x[:n]) for name, sae in saes.items() for n in (1, 50)}
save_file(features, folder / "features.safetensors")
"""


def test_a_new_process_reads_bit_equal_features_from_what_was_saved(tmp_path: Path):
    x = activations(50, dtype=torch.float32)
    save_file({"x": x}, tmp_path / "x.safetensors")
    saes = {name: VARIANTS[name].make(dtype=torch.float32) for name in VARIANTS}
    for name, sae in saes.items():
        sae.save_pretrained(tmp_path / name)
    subprocess.run([sys.executable, "-c", LOAD_AND_ENCODE, str(tmp_path)], check=True, timeout=300)
    features = load_file(tmp_path / "features.safetensors")
    for name, sae in saes.items():
        for n_tokens in (1, 50):  # one token is multiplied by other code than many, which minds memory alignment
            found = features[f"{name}.{n_tokens}"]
            assert torch.equal(found, sae.encode(x[:n_tokens])) and found.any(), name


FOLDED = {
    "plain": {},
    "keeps b_dec": {"subtract_b_dec": False},
    "rescaled": {"rescale_by_decoder_norm": True},
    "skip": {"skip": True},
    "center": {"input_transform": "center"},
    "layer_norm": {"input_transform": "layer_norm", "rescale_by_decoder_norm": True},
}


@pytest.mark.parametrize(
    "name, keep, options",
    [
        pytest.param(name, keep, options, id=f"{name}-{keep}-{called}")
        for name in ARCHITECTURES
        if name not in TIED
        for keep in ("features", "unit_rows")
        for called, options in FOLDED.items()
        if name not in CROSSCODERS or (keep == "features" and not {"skip", "input_transform"} & options.keys())
    ],
)
def test_folding_the_input_scale_away_is_exact(name: str, keep: str, options: dict):
    sae, x = VARIANTS[name].make(**options), activations(40)
    scale, before = sae._scale_in.double(), sae(x)
    rows, directions = sae.decoder_rows.detach().clone(), sae.feature_directions.detach().clone()
    assert sae.fold_input_scale(keep) is sae
    assert (sae.input_scale == 1).all() and not sae.config.scale_inputs
    after = sae(x)
    # Thresholds are float32, and so is what folding makes of them.
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if "threshold" in tensors(sae) else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(after.reconstruction, before.reconstruction, **tolerance)
    factor = 1.0 if keep == "features" else 1 / scale
    torch.testing.assert_close(after.features.to_dense(), before.features.to_dense() * factor, **tolerance)
    torch.testing.assert_close(sae.decoder_rows, rows / scale if keep == "features" else rows)
    torch.testing.assert_close(sae.feature_directions, directions / factor)
    assert before.features.to_dense().any()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in TIED])
def test_a_folded_sae_is_saved_and_loaded_as_it_is(name: str, tmp_path: Path):
    sae, x = VARIANTS[name].make(rescale_by_decoder_norm=True), activations(10)
    sae.fold_input_scale().save_pretrained(tmp_path)
    assert torch.equal(SAE.from_pretrained(tmp_path).encode(x), sae.encode(x))


@every_architecture
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(name: str, clone):
    sae, x = VARIANTS[name].make(), activations(5)
    copied = clone(sae)
    assert torch.equal(copied.encode(x), sae.encode(x)) and copied.config == sae.config
    scramble(copied, seed=9)
    assert not torch.equal(copied.encode(x), sae.encode(x))


@every_architecture
def test_auto_classes_know_it(name: str, tmp_path: Path):
    sae = VARIANTS[name].make()
    sae.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(sae.config)
    assert type(AutoModel.from_pretrained(tmp_path)) is type(AutoModel.from_config(config)) is type(sae)


# -- machinery --------------------------------------------------------------------------------------------------------
@every_architecture
def test_it_can_be_built_on_the_meta_device(name: str):
    sae = VARIANTS[name].make()
    with torch.device("meta"):
        empty = type(sae)(sae.config)
    assert {t.device.type for t in tensors(empty).values()} == {"meta"}
    assert {n: t.shape for n, t in tensors(empty).items()} == {n: t.shape for n, t in tensors(sae).items()}


@every_architecture
def test_the_same_seed_gives_the_same_start(name: str):
    config = VARIANTS[name].make().config
    starts = []
    for _ in range(2):
        torch.manual_seed(3)
        starts.append(tensors(SAE.from_config(config)))
    torch.testing.assert_close(*starts, rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in starts[0].values())


@pytest.mark.parametrize(
    "name", [name if name == "topk" else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_a_compiled_sae_computes_the_same(name: str):
    sae, x = VARIANTS[name].make(), activations(9)
    torch._dynamo.reset()
    compiled = torch.compile(sae, backend="eager")
    torch.testing.assert_close(compiled(x).reconstruction, sae(x).reconstruction)
    torch.testing.assert_close(compiled(x, state=state()).loss, sae(x, state=state()).loss)


@every_architecture
def test_features_can_be_differentiated_by_the_activations(name: str):
    """Attribution needs it; between the places where features switch, the numerical derivative is the true one."""
    sae, x = VARIANTS[name].make(3, 8), activations(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(sae.encode, (x,))
    assert torch.autograd.gradcheck(lambda x: sae(x).reconstruction, (x,))


# -- the start --------------------------------------------------------------------------------------------------------
@every_variant
@pytest.mark.parametrize("scale_inputs", [True, False])
@pytest.mark.parametrize("center", ["mean", "geometric_median"])
def test_after_initialise_the_error_is_at_most_the_variance(name: str, scale_inputs: bool, center: str):
    """At 16x, where tied unit rows alone would reconstruct several times the activation."""
    variant = VARIANTS[name]
    options = {"k": 32} if variant.architecture in HAVE_K else {}
    config = variant.make(24, 384, scale_inputs=scale_inputs, **options).config
    torch.manual_seed(0)
    sae = SAE.from_config(config)
    x = 7 * activations(1024, 24, dtype=torch.float32) + 40 * activations(1, 24, dtype=torch.float32, seed=2)
    initialise(sae, x, center)
    out = sae(x, state=state())
    variance = sae.scaled(x).var(0, correction=0).sum()
    assert out.losses["mse"] <= variance
    assert out.statistics.l0 > 0
