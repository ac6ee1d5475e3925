import pytest
import torch

from hfsae import SAE, TopKSAE, TopKSAEConfig
from hfsae.autoencoder.strategies import WHOLE, Partition, is_replayable, is_shardable
from hfsae.functional import TopK
from tests.architectures.variants import VARIANTS, activations, state


class Halves(Partition):
    """A partition of two, of which the other writes the same."""

    def total(self, part: torch.Tensor) -> torch.Tensor:
        return 2 * part

    def share(self, added_once: torch.Tensor) -> torch.Tensor:
        return added_once / 2


def test_the_whole_is_its_only_part():
    x = torch.randn(3, 2)
    assert WHOLE.total(x) is x and WHOLE.share(x) is x
    assert WHOLE.rule(TopK(3)) == TopK(3) and WHOLE.sizes([2, 6]) == [2, 6]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_reconstructs_and_is_judged_by_what_all_parts_write(name: str):
    sae, x = VARIANTS[name].make(), activations(12)
    out = sae(x, state=state(partition=Halves()))
    scaled = 2 * out.features.to_dense() @ sae.decoder_rows + sae.offset(sae.scaled(x))
    torch.testing.assert_close(out.reconstruction * sae._scale_in, scaled.detach())
    error = out.losses["mse"] if out.statistics.squared_error is None else out.statistics.squared_error
    torch.testing.assert_close(error, (scaled - sae.scaled(x)).square().sum(1).mean().detach())


class Undeclared(SAE):
    config_class = TopKSAEConfig

    def selection(self) -> TopK:
        return TopK(self.config.k)


def test_what_an_architecture_declares_holds_for_what_derives_from_it_and_for_nothing_else():
    class Derived(TopKSAE):
        pass

    config = TopKSAEConfig(d_in=4, n_features=8, k=2)
    assert is_shardable(Derived(config)) and is_replayable(Derived(config))
    assert not is_shardable(Undeclared(config)) and not is_replayable(Undeclared(config))
