import re

import pytest
import torch

from examples import own_activations
from hfsae import SAE, SAETrainer
from hfsae.hooks import width
from tests.training.tiny import arguments


def test_an_sae_is_trained_on_the_patches_of_a_vision_transformer_and_read_in_it(tmp_path, capsys):
    own_activations.main(["--tokens", "40000", "--output_dir", str(tmp_path / "vit")])
    shown = capsys.readouterr().out
    explained = float(re.search(r"explained variance on 200 other images: ([\d.]+)", shown)[1])
    assert explained > 0.8
    sae = SAE.from_pretrained(tmp_path / "vit")
    torch.manual_seed(0)
    model, picture = own_activations.vision_model(), own_activations.images(2)
    with torch.no_grad(), sae.attach(model) as run:
        model(pixel_values=picture)
    by_hand = sae.encode(own_activations.activations(model, picture).view(2, 16, -1))
    torch.testing.assert_close(run.features.to_dense()[:, 1:], by_hand)


def test_what_a_model_that_reads_images_cannot_do_is_said_in_one_sentence(tmp_path):
    model = own_activations.vision_model()
    layer = own_activations.layer_path(model)
    inner = model.get_submodule(layer).named_modules()
    linear = next(path for path, module in inner if isinstance(module, torch.nn.Linear))
    assert width(model, f"{layer}.output") == width(model, f"{layer}.{linear}.input") == own_activations.WIDTH
    message = r"ViTModel reads pixel_values and no token ids.*SAETrainer\(activations=...\), see examples/own_act"
    with pytest.raises(TypeError, match=message):
        width(model, f"{layer}.attention.output")
    with pytest.raises(TypeError, match=message):
        SAETrainer(model=model, args=arguments(tmp_path), train_dataset=torch.ones(300, 12, dtype=torch.long)).train()
