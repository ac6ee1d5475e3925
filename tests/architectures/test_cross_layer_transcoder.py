"""Cross-layer transcoders against the plain formula, both paths, and everything that an architecture owes."""

import copy
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfsae import (
    SAE,
    BatchTopKSAE,
    CrossLayerTranscoderSAEConfig,
    JumpReLUCrossLayerTranscoderSAEConfig,
    JumpReLUSAE,
    TopKCrossLayerTranscoderSAEConfig,
    TopKSAE,
)
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.outputs import StepState
from hfsae.functional import count_active, jump_relu
from tests.architectures.test_recovery import ACTIVE, BATCH, LEARNING_RATE, NOISE, STEPS

LAYERS, D_IN, D_OUT, N, K = 3, 4, 5, 8, 2
NAMES = [f"mlp_in.{layer}" for layer in range(LAYERS)]
CONFIGS = {
    "batch_topk": CrossLayerTranscoderSAEConfig,
    "topk": TopKCrossLayerTranscoderSAEConfig,
    "jumprelu": JumpReLUCrossLayerTranscoderSAEConfig,
}
FORMS = {
    "free": {},
    "tied": {"tied_decoder": True},
    "skip": {"skip": True},
    "multi": {"multi_topk": True},
    "tanh": {"sparsity": "tanh", "pre_act_coefficient": 0.1},
    "frequency": {"frequency_scale": 0.2},
}
OF_JUMPRELU = ("tanh", "frequency")
CASES = [
    (rule, form)
    for rule in CONFIGS
    for form in FORMS
    if (form != "multi" or rule == "topk") and (form not in OF_JUMPRELU or rule == "jumprelu")
]
every_case = pytest.mark.parametrize("rule, form", CASES)
every_rule = pytest.mark.parametrize("rule", CONFIGS)
COEFFICIENT, BANDWIDTH = 0.3, 0.6


def make(rule: str, form: str = "free", dtype: torch.dtype = torch.float64, **options) -> SAE:
    """One whose every tensor is away from its start."""
    own = {"bandwidth": BANDWIDTH} if rule == "jumprelu" else {"k": K}
    places = {"hook_point": "+".join(NAMES), "target_hook_point": "mlp_out.0+mlp_out.1+mlp_out.2"}
    sizes = {
        "source_names": NAMES,
        "source_widths": [D_IN] * LAYERS,
        "d_out": LAYERS * D_OUT,
        "n_features": LAYERS * N,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae = SAE.from_config(CONFIGS[rule](**{**sizes, **places, **own, **FORMS[form], **options})).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name in ("input_scale", "output_scale"):
                tensor.copy_(1.5 + 0.2 * noise.tanh())
            elif name == "threshold":
                tensor.copy_(0.4 + 0.3 * noise.tanh())
            else:
                tensor.add_(0.4 * noise)
    return sae


def rows(n_tokens: int, width: int, seed: int) -> Tensor:
    return torch.randn(n_tokens, LAYERS * width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(n_tokens: int = 30) -> tuple[Tensor, Tensor]:
    return rows(n_tokens, D_IN, 1), rows(n_tokens, D_OUT, 2)


def step_state(path: str = "auto", **fields) -> StepState:
    return StepState(path=path, sparsity_coefficient=COEFFICIENT, target_l0=3.0, **fields)


# -- the formula, by hand ---------------------------------------------------------------------------------------------
def pre_activations(sae: SAE, x: Tensor) -> list[Tensor]:
    parts = [scale * part for scale, part in zip(sae.input_scale.double(), x.split(D_IN, 1), strict=True)]
    weights, biases = sae.encoder.weight.split(N), sae.encoder.bias.split(N)
    return [part @ weight.T + bias for part, weight, bias in zip(parts, weights, biases, strict=True)]


def row_of(sae: SAE, source: int, target: int) -> Tensor:
    """(n, d_out) what the features of one layer write at another."""
    if sae.config.tied_decoder:
        return sae.decoder_scale[source][:, target - source, None] * sae.W_dec[source]
    return sae.W_dec[source][:, (target - source) * D_OUT : (target - source + 1) * D_OUT]


def scaled_output(sae: SAE, z: list[Tensor], x: Tensor) -> Tensor:
    outputs = []
    for target, bias in enumerate(sae.b_dec.split(D_OUT)):
        made = sum((z[source] @ row_of(sae, source, target) for source in range(target + 1)), start=bias)
        if sae.config.skip:
            made = made + sae.input_scale[target].double() * x.split(D_IN, 1)[target] @ sae.W_skip[target].T
        outputs.append(made)
    return torch.cat(outputs, 1)


def of_rule(sae: SAE, h: Tensor, layer: int, k: int = K) -> Tensor:
    """What is active in training of the pre-activations (N, n) of one layer."""
    if isinstance(sae, JumpReLUSAE):
        return jump_relu(h, sae.threshold.split(N)[layer], BANDWIDTH)
    chosen = h.detach()
    if isinstance(sae, BatchTopKSAE):
        least = chosen.relu().flatten().topk(k * len(h)).values.amin()
        return h * ((chosen >= least) & (chosen > 0))
    return h.relu() * torch.zeros_like(h).scatter(1, chosen.topk(k).indices, 1)


def expected_step(sae: SAE, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Features and loss."""
    h = pre_activations(sae, x)
    z = [of_rule(sae, own, layer) for layer, own in enumerate(h)]
    goal = torch.cat([s * part for s, part in zip(sae.output_scale.double(), y.split(D_OUT, 1), strict=True)], 1)
    loss = (scaled_output(sae, z, x) - goal).square().sum(1).mean()
    features = torch.cat(z, 1)
    if getattr(sae.config, "multi_topk", False):
        wider = [of_rule(sae, own, layer, k=4 * K) for layer, own in enumerate(h)]
        loss = loss + (scaled_output(sae, wider, x) - goal).square().sum(1).mean() / 8
    if isinstance(sae, JumpReLUSAE):
        if sae.config.sparsity == "tanh":
            norms = torch.cat(
                [
                    sum(row_of(sae, source, target).square().sum(1) for target in range(source, LAYERS)).sqrt()
                    for source in range(LAYERS)
                ]
            )
            loss = loss + COEFFICIENT * (sae.config.tanh_scale * features * norms).tanh().sum(1).mean()
        else:
            columns = zip(torch.cat(h, 1).T, sae.threshold, strict=True)
            shares = torch.stack([count_active(own, threshold, BANDWIDTH) / len(x) for own, threshold in columns])
            loss = loss + COEFFICIENT * shares.sum()
            if sae.config.frequency_scale is not None:
                loss = loss + COEFFICIENT * shares.square().sum() / sae.config.frequency_scale
    return features, loss


@every_case
@pytest.mark.parametrize("path", ["dense", "sparse", "auto"])
def test_a_step_is_the_plain_formula_with_its_gradients(rule: str, form: str, path: str):
    sae, (x, y) = make(rule, form), batch()
    features, loss = expected_step(sae, x, y)
    parameters = [*sae.named_parameters()]
    expected = torch.autograd.grad(loss, [parameter for _, parameter in parameters], allow_unused=True)
    out = sae(x, y, state=step_state(path))
    out.loss.backward()
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(out.features.to_dense(), features.detach())
    for (name, parameter), gradient in zip(parameters, expected, strict=True):
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(
            parameter.grad, gradient.to(parameter.grad), msg=lambda m, name=name: f"{name}: {m}"
        )
    torch.testing.assert_close(out.statistics.tokens_firing, (features != 0).sum(0))
    if rule == "batch_topk":
        smallest = torch.stack([own[own > 0].amin() for own in features.detach().split(N, 1)])
        torch.testing.assert_close(out.statistics.smallest_kept.double(), smallest, rtol=1e-6, atol=0)


@every_case
def test_in_use_a_layer_s_features_write_at_it_and_at_later_layers_alone(rule: str, form: str):
    sae, (x, _) = make(rule, form), batch()
    h = pre_activations(sae, x)
    if rule == "topk":
        z = [of_rule(sae, own, layer) for layer, own in enumerate(h)]
    else:
        z = [own * (own > sae.threshold.view(LAYERS, -1)[layer]) for layer, own in enumerate(h)]
    out = sae(x)
    torch.testing.assert_close(out.features.to_dense(), torch.cat(z, 1))
    torch.testing.assert_close(sae.encode(x), torch.cat(z, 1))
    made = torch.cat(
        [
            part / s
            for part, s in zip(scaled_output(sae, z, x).split(D_OUT, 1), sae.output_scale.double(), strict=True)
        ],
        1,
    )
    torch.testing.assert_close(out.reconstruction, made)
    torch.testing.assert_close(sae.decode(sae.encode(x).reshape(5, 6, -1), x.reshape(5, 6, -1)).reshape(30, -1), made)
    late = x.clone()
    late[:, 2 * D_IN :] += 1.0
    assert torch.equal(sae(late).reconstruction[:, : 2 * D_OUT], out.reconstruction[:, : 2 * D_OUT])
    assert not torch.allclose(sae(late).reconstruction[:, 2 * D_OUT :], out.reconstruction[:, 2 * D_OUT :])


# -- by layer ---------------------------------------------------------------------------------------------------------
@every_rule
def test_layers_by_name_in_any_order_and_some_of_them_alone(rule: str):
    sae, (x, y) = make(rule), batch()
    given = dict(zip(NAMES, x.split(D_IN, 1), strict=True))
    dense = sae.encode(x)
    assert torch.equal(sae.encode(dict(reversed(given.items()))), dense)
    assert torch.equal(sae(given).reconstruction, sae(x).reconstruction)
    targets = dict(zip(NAMES, y.split(D_OUT, 1), strict=True))
    assert torch.equal(sae(given, targets, state=step_state()).loss, sae(x, y, state=step_state()).loss)
    some = sae.encode({name: given[name] for name in (NAMES[2], NAMES[0])})
    assert torch.equal(some[:, :N], dense[:, :N]) and torch.equal(some[:, 2 * N :], dense[:, 2 * N :])
    assert not some[:, N : 2 * N].any() and dense[:, N : 2 * N].any()
    assert torch.equal(
        sae.encode({NAMES[1]: given[NAMES[1]]}, [N + 3, 0]), torch.stack([dense[:, N + 3], 0 * dense[:, 0]], 1)
    )
    own = sae.encode_layer(NAMES[1], given[NAMES[1]].reshape(5, 6, -1))
    assert own.shape == (5, 6, N) and torch.equal(own.to_dense().reshape(30, N), dense[:, N : 2 * N])
    assert list(sae.split(sae(x).reconstruction)) == NAMES
    torch.testing.assert_close(
        sae.pre_activations(x, [20, 1, 9]), torch.cat(pre_activations(sae, x), 1)[:, [20, 1, 9]]
    )


@every_rule
@pytest.mark.parametrize("form", ["free", "tied", "skip"])
def test_a_layer_by_itself_is_an_ordinary_transcoder(rule: str, form: str):
    sae, (x, _) = make(rule, form), batch()
    alone = sae.layer("mlp_in.1", "mlp_in.2")
    assert type(alone) is {"batch_topk": BatchTopKSAE, "topk": TopKSAE, "jumprelu": JumpReLUSAE}[rule]
    assert (alone.config.hook_point, alone.config.target_hook_point) == ("mlp_in.1", "mlp_out.2")
    part = x.split(D_IN, 1)[1]
    torch.testing.assert_close(alone.encode(part), sae.encode(x)[:, N : 2 * N])
    written = sae.encode(x)[:, N : 2 * N] @ row_of(sae, 1, 2) / sae.output_scale[2]
    torch.testing.assert_close(alone(part).reconstruction, written)
    first = sae.layer(0)
    torch.testing.assert_close(first(x[:, :D_IN]).reconstruction, sae(x).reconstruction[:, :D_OUT])


def test_what_layers_are_not_there_or_write_backwards_is_refused():
    sae, (x, _) = make("topk"), batch()
    with pytest.raises(ValueError, match=re.escape("there is no layer 'mlp_in.9', but mlp_in.0, mlp_in.1, mlp_in.2.")):
        sae.encode({"mlp_in.9": x[:, :D_IN]})
    with pytest.raises(ValueError, match=r"write at it and later ones, not at mlp_in\.0"):
        sae.layer(1, 0)
    with pytest.raises(ValueError, match=r"no activations of mlp_in\.1, mlp_in\.2 are given"):
        sae({"mlp_in.0": x[:, :D_IN]})
    with pytest.raises(ValueError, match="keep must be 'features'"):
        sae.fold_input_scale("unit_rows")
    with pytest.raises(ValueError, match="decoder rows by layer"):
        _ = sae.decoder_rows


WRONG = {
    "no layers": ({"source_names": [], "source_widths": []}, "d_in must be a positive|needs source_names"),
    "unequal widths": ({"source_widths": [4, 4, 8]}, "all the same"),
    "a name twice": ({"source_names": ["a", "b", "a"]}, "each once"),
    "features do not part": ({"n_features": 25}, "multiples of the number of layers, 3"),
    "k above a layer's features": ({"k": 9}, "k=9 is of every layer, which has 8 features"),
    "places": ({"hook_point": "mlp_in.0"}, "must join 3 places"),
    "subtracts": ({"subtract_b_dec": True}, "takes neither subtract_b_dec"),
    "aligned": ({"aligned": True}, "two places, in a transcoder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_config_that_cannot_be_is_refused(case: str):
    options, message = WRONG[case]
    whole = {"source_names": ["a", "b", "c"], "source_widths": [4] * 3, "n_features": 24, "k": 2, **options}
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        CrossLayerTranscoderSAEConfig(**whole)


# -- what every architecture owes -------------------------------------------------------------------------------------
@every_case
def test_saving_and_loading_changes_no_bit(rule: str, form: str, tmp_path: Path):
    sae, x = make(rule, form, dtype=torch.float32), batch()[0].float()
    sae.save_pretrained(tmp_path)
    loaded = SAE.from_pretrained(tmp_path)
    assert type(loaded) is type(sae) and loaded.config.to_diff_dict() == sae.config.to_diff_dict()
    assert loaded.state_dict().keys() == sae.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in sae.state_dict().items())
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


@every_case
def test_folding_the_scales_away_is_exact(rule: str, form: str):
    sae, (x, _) = make(rule, form), batch()
    before = sae(x)
    assert sae.fold_input_scale() is sae and (sae.input_scale == 1).all() and (sae.output_scale == 1).all()
    after = sae(x)
    torch.testing.assert_close(after.reconstruction, before.reconstruction, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.features.to_dense(), before.features.to_dense(), rtol=1e-6, atol=1e-6)
    assert before.features.to_dense().any() and not sae.config.scale_inputs


@every_case
@pytest.mark.parametrize("path", ["dense", "sparse", "auto"])
def test_no_tokens_cost_nothing_and_move_nothing(rule: str, form: str, path: str):
    sae = make(rule, form)
    dead = torch.ones(LAYERS * N, dtype=torch.bool)
    state = step_state(path, dead=dead, n_dead=LAYERS * N, auxk_alpha=1 / 32)
    out = sae(*batch(0), state=state)
    out.loss.backward()
    assert out.loss == 0 and all(p.grad is None or not p.grad.any() for p in sae.parameters())
    before = copy.deepcopy(sae.state_dict())
    sae.after_step(out.statistics, state)
    torch.testing.assert_close(dict(sae.state_dict()), dict(before))


@every_rule
@pytest.mark.parametrize("path", ["dense", "sparse", "auto"])
def test_nan_at_a_layer_is_nan_at_it_and_later_ones(rule: str, path: str):
    sae, (x, y) = make(rule), batch(7)
    x[2, D_IN + 1] = torch.nan
    assert sae(x, y, state=step_state(path)).loss.isnan()
    made = sae(x).reconstruction
    assert made[2, D_OUT:].isnan().all() and made[2, :D_OUT].isfinite().all()
    others = [token for token in range(7) if token != 2]
    assert made[others].isfinite().all() and sae.encode(x)[2, N : 2 * N].isnan().any()


@every_rule
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_dead_features_of_a_layer_learn_what_is_missed_at_it_and_later_ones(rule: str, path: str):
    """By hand, for the dead features of layer 1 alone: a TopK of them against the last two layers' residual."""
    sae, (x, y) = make(rule), batch()
    dead = torch.zeros(LAYERS * N, dtype=torch.bool)
    dead[[N + 1, N + 4, N + 6]] = True
    out = sae(x, y, state=step_state(path, dead=dead, n_dead=16, auxk_alpha=1 / 32))
    goal = torch.cat([s * part for s, part in zip(sae.output_scale.double(), y.split(D_OUT, 1), strict=True)], 1)
    made = torch.cat(
        [s * part for s, part in zip(sae.output_scale, out.reconstruction.split(D_OUT, 1), strict=True)], 1
    )
    missed = (goal - made)[:, D_OUT:].detach()
    h = pre_activations(sae, x)[1][:, [1, 4, 6]].relu()
    error = (missed - h @ torch.cat([row_of(sae, 1, 1), row_of(sae, 1, 2)], 1)[[1, 4, 6]]).square().sum()
    spread = (missed - missed.mean(0)).square().sum()
    k_aux = LAYERS * D_OUT - D_OUT
    variance = (goal[:, D_OUT:] - goal[:, D_OUT:].mean(0)).square().sum() / len(x)
    expected = 1 / 32 * min(1.0, 3 / (k_aux // 2)) * variance * error / spread
    torch.testing.assert_close(out.losses["auxk"], expected.detach())
    out.loss.backward()
    assert sae.W_dec[1].grad[[1, 4, 6]].any()


@every_rule
def test_features_can_be_differentiated_by_the_activations(rule: str):
    sae, x = make(rule), batch(2)[0].requires_grad_()
    assert torch.autograd.gradcheck(sae.encode, (x,))
    assert torch.autograd.gradcheck(lambda x: sae(x).reconstruction, (x,))


@every_rule
@pytest.mark.parametrize("form", ["free", "tied"])
def test_after_initialise_each_layer_is_scaled_and_the_error_is_the_variance_at_most(rule: str, form: str):
    sae = make(rule, form, n_features=LAYERS * 64, dtype=torch.float32, **({} if rule == "jumprelu" else {"k": 8}))
    torch.manual_seed(0)
    sae = SAE.from_config(sae.config)
    x, y = (7 * part.float() for part in batch(1024))
    x[:, D_IN:] *= 10
    y[:, :D_OUT] += 40
    initialise(sae, x, target=y)
    torch.testing.assert_close(sae.input_scale[0], 10 * sae.input_scale[1], rtol=0.1, atol=0)
    out = sae(x, y, state=step_state())
    assert out.losses["mse"] <= 1.01 * sae.scaled_target(x, y).var(0, correction=0).sum() and out.statistics.l0 > 0
    if rule == "batch_topk":
        active = sae.encode(x).reshape(1024, LAYERS, 64).count_nonzero(2).float().mean(0)
        torch.testing.assert_close(active, torch.full((LAYERS,), 8.0), rtol=0.02, atol=0)


# -- planted features -------------------------------------------------------------------------------------------------
TRUE, WIDTH = 24, 32


def planted(n_tokens: int, generator: torch.Generator, read: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """What three layers read, and what they write: layer t all that features of layers up to it write there."""
    strengths = torch.zeros(n_tokens, LAYERS, TRUE)
    chosen = torch.rand(n_tokens, LAYERS, TRUE, generator=generator).topk(ACTIVE).indices
    strengths.scatter_(2, chosen, 1 + torch.rand(n_tokens, LAYERS, ACTIVE, generator=generator))
    x = torch.einsum("nlf,lfd->nld", strengths, read)
    y = torch.einsum("nlf,lftd->ntd", strengths, written)
    x, y = (part + NOISE * part.std() * torch.randn(part.shape, generator=generator) for part in (x, y))
    return x.flatten(1), y.flatten(1)


@pytest.mark.parametrize(
    "rule, form",
    [
        ("topk", "free"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("batch_topk", "free"), ("jumprelu", "free")]),
        pytest.param("topk", "tied", marks=pytest.mark.slow),
    ],
)
def test_planted_features_that_write_at_several_layers_are_found(rule: str, form: str):
    generator = torch.Generator().manual_seed(0)
    read = torch.nn.functional.normalize(torch.randn(LAYERS, TRUE, WIDTH, generator=generator), dim=2)
    written = torch.randn(LAYERS, TRUE, LAYERS, WIDTH, generator=generator)
    if form == "tied":
        written = written[:, :, :1] * (0.5 + torch.rand(LAYERS, TRUE, LAYERS, 1, generator=generator))
    written *= torch.ones(LAYERS, LAYERS).triu()[:, None, :, None]
    torch.manual_seed(1)
    own = {"initial_l0": 2 * ACTIVE} if rule == "jumprelu" else {"k": ACTIVE}
    layers = {"source_names": NAMES, "source_widths": [WIDTH] * LAYERS, "n_features": LAYERS * 4 * TRUE}
    sae = SAE.from_config(CONFIGS[rule](**layers, **own, **FORMS[form]))
    x, y = planted(16 * BATCH, generator, read, written)
    initialise(sae, x, target=y)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (STEPS - step) / (0.3 * STEPS))
        state = StepState(step=step, sparsity_coefficient=0.5 * min(1.0, step / (0.2 * STEPS)))
        out = sae(*planted(BATCH, generator, read, written), state=state)
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            for weights in sae.decoder_weights:
                weights.copy_(torch.nn.functional.normalize(weights, dim=1))
        sae.after_step(out.statistics, state)
    for layer in range(LAYERS):
        later = torch.nn.functional.normalize((written[layer, :, layer:]).flatten(1), dim=1)
        scales = sae.output_scale[layer:].repeat_interleave(WIDTH)
        found = torch.nn.functional.normalize(sae.rows_of_layer(layer).detach() / scales, dim=1)
        assert ((later @ found.T).amax(1) > 0.85).float().mean() > 0.9, layer


@every_rule
def test_some_features_are_those_of_all_however_they_are_named(rule):
    sae, (x, _) = make(rule), batch(6)
    by_name = dict(zip(NAMES, x.split(D_IN, 1), strict=True))
    mask = torch.arange(LAYERS * N) % 3 == 0
    every = torch.cat(pre_activations(sae, x), 1)
    z = sae.encode(x)
    for given in (x, by_name):
        for some in ([LAYERS * N - 1, 0, N], [-1, -N], mask, torch.tensor([2]), []):
            columns = torch.tensor(some, dtype=torch.long) if isinstance(some, list) else some
            torch.testing.assert_close(sae.pre_activations(given, some), every[:, columns])
            torch.testing.assert_close(sae.encode(given, some), z[:, columns])
            alone = torch.zeros_like(z)
            alone[:, columns] = z[:, columns]
            torch.testing.assert_close(sae.encode_sparse(given, some).to_dense(), alone)
        for read in (sae.pre_activations, sae.encode, sae.encode_sparse):
            for impossible in ([LAYERS * N], [-LAYERS * N - 1], mask[1:]):
                with pytest.raises(IndexError):
                    read(given, impossible)
            with pytest.raises(TypeError, match="whole numbers"):
                read(given, [0.5])
