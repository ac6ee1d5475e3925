import pytest
import torch

from hfsae import SAE
from hfsae.functional.alignment import align
from tests.architectures.variants import OF_ONE_SOURCE, VARIANTS, activations
from tests.autoencoder.test_model import topk, transcoder

of_one_source = pytest.mark.parametrize("name", OF_ONE_SOURCE)


@of_one_source
def test_folding_a_transcoder_that_subtracts_b_dec_moves_the_subtraction_into_the_biases(name: str):
    places = {"hook_point": "layers.3.mlp.input", "target_hook_point": "layers.3.mlp.output"}
    sae, x = VARIANTS[name].make(subtract_b_dec=True, **places), activations(20)
    before = sae(x)
    assert sae.input_scale != sae.output_scale
    after = sae.fold_input_scale("features")(x)
    assert not sae.config.subtract_b_dec
    torch.testing.assert_close(after.features.to_dense(), before.features.to_dense())
    torch.testing.assert_close(after.reconstruction, before.reconstruction)


@of_one_source
@pytest.mark.parametrize("skip", [False, True])
def test_folding_both_scales_of_a_transcoder_is_exact(name: str, skip: bool):
    sae, x = transcoder(name, d_out=4, skip=skip), activations(20)
    before = sae(x)
    sae.fold_input_scale("features")
    assert sae.input_scale == sae.output_scale == 1
    after = sae(x)
    torch.testing.assert_close(after.features.to_dense(), before.features.to_dense())
    torch.testing.assert_close(after.reconstruction, before.reconstruction)


def test_a_transcoders_scales_cannot_both_move_into_its_features():
    with pytest.raises(ValueError, match="one scale for all of input and output; use keep='features'"):
        transcoder().fold_input_scale("unit_rows")


def test_an_unknown_way_to_fold_is_refused_before_anything_is_changed():
    sae = topk()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    with pytest.raises(ValueError, match="keep must be 'features' or 'unit_rows', got 'rows'"):
        sae.fold_input_scale("rows")
    torch.testing.assert_close(dict(sae.state_dict()), before)


@pytest.mark.parametrize("keep", ["features", "unit_rows"])
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}], ids=str)
def test_aligned_rows_stay_aligned_folded_and_saved(keep: str, options: dict, tmp_path):
    sae, x = VARIANTS["topk"].make(aligned=True, **options), activations(20)
    align(sae.encoder.weight, sae.W_dec)
    assert not torch.allclose(sae.input_scale, torch.ones(()))
    sae.fold_input_scale(keep).save_pretrained(tmp_path)
    loaded = SAE.from_pretrained(tmp_path)
    products = (loaded.encoder_rows * loaded.decoder_rows).sum(1)
    torch.testing.assert_close(products, torch.ones(len(products), dtype=torch.float64), rtol=0, atol=1e-6)
    assert loaded.config.aligned and torch.equal(loaded.encode(x), sae.encode(x))
