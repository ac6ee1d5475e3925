"""Features of a transcoder that stay dead get a new start at what is missed.

A transcoder does not subtract a centre from what it reads, so its biases move with the mean of the activations, and
many features drift below 0 on nearly all tokens. There `auxk` gives them no gradient. Resampling as of autoencoders
would point both rows at what is read. Here each end gets its own: the encoder row what was read where much is missed,
the decoder row what is missed there.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hfsae.modeling import SAE
from hfsae.parallel.sharded_sae import OF_NO_FEATURE

# A revived feature is on its strongest of so many tokens as strong as the median living one on its own.
_LEVEL_TOKENS = 512
# So many living features are asked.
_LIVING = 1024


@torch.no_grad()
def repoint(
    sae: SAE,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    target: Tensor,
    stuck: Tensor,
    dead: Tensor,
    seed: int,
    *,
    together: bool = False,
) -> int:
    """Points dead features of a transcoder at the tokens where it misses most.

    Decoder rows become the normalised error at tokens that are drawn with probability ∝ ‖error‖², at the mean norm of
    living rows where rows are free. Encoder rows become the centred activation there, at the mean norm of living
    rows. Biases bring the feature, on its strongest of some hundred tokens, to where the median living feature is on
    its own, above its threshold where there is one. Adam's moments of all go to 0.

    Args:
        sae: The transcoder, whole, edited in place.
        optimiser: Its Adam.
        x: (N, d_in) what it reads.
        target: (N, d_out) what it is to write.
        stuck: (n_features,) bool, which features to point anew; the same on every process.
        dead: (n_features,) bool, which are dead; the others are the living ones.
        seed: Of the draw.
        together: Whether every process holds this transcoder and calls this: what process 0 draws is used by all.

    Returns:
        How many features were pointed anew.
    """
    features, living = stuck.nonzero()[:, 0], (~dead).nonzero()[:, 0]
    if not len(features) or not len(living):
        return 0
    scaled, goal = sae.scaled(x.to(sae.dtype)), sae.scaled_target(x.to(sae.dtype), target.to(sae.dtype))
    error = (goal - sae.scaled_reconstruction(scaled)).float()
    share = error.square().sum(1) + torch.finfo(torch.float32).tiny  # all 0 is no distribution
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(share.double().cpu(), len(features), replacement=True, generator=generator).to(x.device)
    living = living[torch.randperm(len(living), generator=generator)[:_LIVING].to(living.device)]
    encoder = F.normalize((scaled[drawn] - scaled.mean(0)).float(), dim=1) * _mean_norm(sae.encoder.weight, living)
    norm = 1.0 if sae.unit_decoder_rows else _mean_norm(sae.W_dec, living)
    decoder = F.normalize(error[drawn], dim=1) * norm
    some = sae.encoder_input(scaled[:: max(1, len(scaled) // _LEVEL_TOKENS)])
    threshold = dict(sae.named_parameters()).get("threshold", torch.zeros(len(dead), device=x.device))
    rows, bias = sae.encoder_rows, sae.encoder_bias
    level = (F.linear(some, rows[living], bias[living]) - threshold[living]).amax(0).median()
    _of_first_process(encoder, decoder, together=together)
    sae.encoder.weight[features] = encoder.to(sae.encoder.weight)
    sae.W_dec[features] = decoder.to(sae.W_dec)
    now = F.linear(some, sae.encoder_rows[features], sae.encoder_bias[features]) - threshold[features]
    shift = torch.zeros_like(bias)
    shift[features] = level - now.amax(0)
    _of_first_process(shift, together=together)
    sae.shift_pre_activations(shift)
    for name, parameter in sae.named_parameters():
        if name in OF_NO_FEATURE or not parameter.dim() or len(parameter) != len(dead):
            continue
        for moment in optimiser.state.get(parameter, {}).values():
            if moment.shape == parameter.shape:
                moment[features] = 0
    return len(features)


def _of_first_process(*tensors: Tensor, together: bool) -> None:
    if together and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def _mean_norm(rows: Tensor, chosen: Tensor) -> Tensor:
    return rows[chosen].norm(dim=1).mean()
