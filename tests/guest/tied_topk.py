"""TopK whose encoder is its decoder, row by row, times a gain that each feature learns."""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from hfsae.architectures import register
from hfsae.configuration import SAEConfig
from hfsae.functional import Selection, TopK
from hfsae.modeling import SAE


@strict
class TiedTopKSAEConfig(SAEConfig):
    model_type = "hfsae_tied_topk"
    k: int = 8


@register
class TiedTopKSAE(SAE):
    config_class = TiedTopKSAEConfig
    config: TiedTopKSAEConfig

    def _declare(self, config: TiedTopKSAEConfig) -> None:
        self.gain = nn.Parameter(torch.empty(config.n_features))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.ones_(self.gain)

    @property
    def encoder_rows(self) -> Tensor:
        return self.W_dec * self.gain[:, None]

    def selection(self) -> Selection:
        return TopK(self.config.k)
