"""TopK whose k falls over the run, from four times to once what the config says."""

from huggingface_hub.dataclasses import strict

from hfsae.architectures import register
from hfsae.configuration import SAEConfig
from hfsae.functional import Selection, TopK
from hfsae.modeling import SAE


@strict
class AnnealedTopKSAEConfig(SAEConfig):
    model_type = "hfsae_annealed_topk"
    k: int = 8


@register
class AnnealedTopKSAE(SAE):
    config_class = AnnealedTopKSAEConfig
    config: AnnealedTopKSAEConfig

    def selection(self) -> Selection:
        return TopK(self.config.k)

    def training_selection(self, progress: float = 1.0) -> Selection:
        return TopK(round(self.config.k * (4 - 3 * progress)))
