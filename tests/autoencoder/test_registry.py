from collections.abc import Iterator

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hfsae import SAE, SAEConfig, TopKSAE, TopKSAEConfig
from hfsae.architectures import architecture_name, architectures, config_class_of, register
from hfsae.autoencoder import registry
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.objective import TrainingStep
from hfsae.autoencoder.outputs import StepState
from hfsae.functional import Elementwise, Pattern, Selection
from tests.architectures.variants import activations, scramble


def test_the_architectures_by_name():
    cross_layer = {f"{rule}cross_layer_transcoder" for rule in ("", "topk_", "jumprelu_")}
    crosscoders = {"crosscoder", "topk_crosscoder", "jumprelu_crosscoder", "standard_crosscoder"}
    assert set(architectures()) == {
        "standard",
        "topk",
        "abs_topk",
        "batch_topk",
        "jumprelu",
        "gated",
        "matryoshka",
        "matching_pursuit",
        *crosscoders,
        *cross_layer,
    }
    assert architectures()["topk"] is TopKSAE and config_class_of("topk") is TopKSAEConfig


def test_a_name_is_that_of_a_config_and_of_its_class():
    config = TopKSAEConfig(d_in=4, n_features=8, k=2)
    assert architecture_name(config) == architecture_name(TopKSAEConfig) == "topk"


def test_changing_the_answer_does_not_change_the_registry():
    architectures().clear()
    assert "topk" in architectures()


def test_an_unknown_architecture_is_an_error_that_lists_those_there_are():
    with pytest.raises(
        ValueError,
        match="unknown architecture 'top_k'; there are abs_topk, batch_topk, cross_layer_transcoder, crosscoder",
    ):
        config_class_of("top_k")


def test_a_model_type_of_another_family_cannot_be_registered():
    class ForeignConfig(SAEConfig):
        model_type = "foreign"

    class Foreign(SAE):
        config_class = ForeignConfig

    with pytest.raises(ValueError, match="'hfsae_<name>', got 'foreign'"):
        register(Foreign)
    assert "foreign" not in CONFIG_MAPPING


# -- another architecture, as somebody else would write it ------------------------------------------------------------
@pytest.fixture
def signed() -> Iterator[type[SAE]]:
    """Signed features where |h| exceeds a margin: a selection, a parameter, an option and a loss term of its own."""

    @strict
    class SignedSAEConfig(SAEConfig):
        model_type = "hfsae_signed"
        margin: float = 0.5

    class OutsideOf(Elementwise):
        def __init__(self, margin: float):
            self.margin = margin

        def mask(self, pre: Tensor) -> Tensor:
            return pre.abs() > self.margin

    @register
    class SignedSAE(SAE):
        config_class = SignedSAEConfig
        config: SignedSAEConfig
        default_sparsity_coefficient = 1.0

        def _declare(self, config) -> None:
            self.gain = torch.nn.Parameter(torch.empty(config.n_features))

        def _init_weights(self, module) -> None:
            super()._init_weights(module)
            if module is self:
                torch.nn.init.ones_(self.gain)

        def selection(self) -> Selection:
            return OutsideOf(self.config.margin)

        def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
            return pattern.keep(pre * pattern.gather(self.gain))

        def objective(self, step: TrainingStep) -> dict[str, Tensor]:
            return {"mse": step.mse(), "l1": step.state.sparsity_coefficient * step.mean_per_token(step.values.abs())}

    yield SignedSAE
    del registry._REGISTERED["signed"]
    CONFIG_MAPPING._extra_content.pop("hfsae_signed")
    MODEL_MAPPING._extra_content.pop(SignedSAEConfig)


def test_a_sixth_architecture_is_one_registered_class(signed: type[SAE], tmp_path):
    assert architectures()["signed"] is signed
    config = config_class_of("signed")(d_in=6, n_features=24, margin=0.7)
    torch.manual_seed(0)
    sae = SAE.from_config(config)
    x = activations(64, dtype=torch.float32)
    initialise(sae, x)
    pre = sae.pre_activations(x)
    torch.testing.assert_close(sae.encode(x), pre * (pre.abs() > 0.7))

    optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
    losses = []
    for step in range(20):
        out = sae(x, state=StepState(step=step, sparsity_coefficient=0.01))
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(out.loss.item())
    assert losses[-1] < 0.9 * losses[0]
    dense, sparse = (sae(x, state=StepState(path=path)).loss for path in ("dense", "sparse"))
    torch.testing.assert_close(dense, sparse)

    sae.save_pretrained(tmp_path)
    for loaded in (SAE.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is signed and loaded.config.margin == 0.7
        assert torch.equal(loaded.encode(x), sae.encode(x))


class AlignedSAE(TopKSAE):
    """Encoder rows that are computed: each has an inner product of 1 with its decoder row."""

    @property
    def encoder_rows(self) -> Tensor:
        weight, rows = self.encoder.weight, self.W_dec
        return weight + (1 - (weight * rows).sum(1, keepdim=True)) * rows


@pytest.mark.parametrize("n_dead", [0, 100])
def test_computed_encoder_rows_have_the_same_gradients_on_both_paths(n_dead: int):
    """The sparse path hands sparse gradients back where few rows are read; what computes them must take them."""
    gradients = {}
    for path in ("dense", "sparse"):
        torch.manual_seed(0)
        sae = AlignedSAE(TopKSAEConfig(d_in=32, n_features=1024, k=8)).to(torch.float64)
        scramble(sae)
        dead = torch.arange(1024) < n_dead
        state = StepState(dead=dead if n_dead else None, n_dead=n_dead, auxk_alpha=1 / 32, path=path)
        sae(activations(256, 32), state=state).loss.backward()
        gradients[path] = {name: p.grad.to_dense() for name, p in sae.named_parameters()}
    for name, gradient in gradients["dense"].items():
        torch.testing.assert_close(gradients["sparse"][name], gradient)
        assert gradient.any(), name
