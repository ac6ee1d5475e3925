"""What clt-training, a fork of sparsify, adds to its files: read where it does nothing, else refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfsae import SAE
from tests.interop.foreign import FOREIGN, D, N, random, write_tensors

X = torch.randn(40, D, generator=torch.Generator().manual_seed(3))


def test_biases_of_0_behind_the_encoder_do_nothing(tmp_path: Path):
    foreign = FOREIGN["sparsify_topk"](tmp_path)
    weights = foreign.path / "sae.safetensors"
    write_tensors(weights, {**load_file(weights), "post_enc": torch.zeros(N)})
    sae = SAE.from_pretrained(foreign.path)
    features = foreign.features(X)
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X).reconstruction, foreign.decode(features, X), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("post_enc", (N,), "clt-training, and adds post_enc to features that are active"),
        ("post_encs.1", (N,), "one layer of a cross-layer transcoder of clt-training's"),
        ("W_decs.1", (N, D), "one layer of a cross-layer transcoder of clt-training's"),
        ("in_norm", (1,), "hold in_norm besides"),
        ("post_enc_scale", (N,), "hold post_enc_scale besides"),
    ],
)
def test_what_would_change_reconstructions_is_refused(name: str, shape: tuple[int, ...], message: str, tmp_path: Path):
    foreign = FOREIGN["sparsify_topk"](tmp_path)
    weights = foreign.path / "sae.safetensors"
    write_tensors(weights, {**load_file(weights), name: random(*shape, seed=1)})
    with pytest.raises(ValueError, match=message):
        SAE.from_pretrained(foreign.path)
