"""Trains an SAE on activations that hfsae cannot compute by itself: here those of a vision transformer's patches.

hfsae runs models that read token ids. Whatever reads images or sound is run by you: you collect activations with a
hook of torch, hand them over as a tensor, and attach the trained SAE to the model afterwards. Offline, in seconds:

    python examples/own_activations.py
    python examples/own_activations.py --tokens 500000 --output_dir runs/vit

The vision transformer is a tiny one with random weights, and the images are coloured stripes; take
`ViTModel.from_pretrained("google/vit-base-patch16-224")` and photographs of your own in their place.
"""

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig

IMAGE, PATCH, WIDTH, LAYER = 32, 8, 32, 1


def vision_model() -> ViTModel:
    """A vision transformer of three layers, of 16 patches of an image."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    return ViTModel(ViTConfig(**sizes, image_size=IMAGE, patch_size=PATCH), add_pooling_layer=False).eval()


def layer_path(model: ViTModel) -> str:
    """The path of the layer whose output is read; versions of transformers differ in where the layers lie."""
    return next(f"{path}.{LAYER}" for path, module in model.named_modules() if isinstance(module, nn.ModuleList))


def images(n: int) -> Tensor:
    """Stripes of random colour, width and direction: (n, 3, 32, 32)."""
    line = torch.arange(IMAGE)
    direction, period, phase = torch.rand(3, n, 1, 1)
    place = direction.round() * line[:, None] + (1 - direction.round()) * line
    return torch.rand(n, 3, 1, 1) * torch.sin(place / (1 + 4 * period) + 6 * phase)[:, None]


@torch.no_grad()
def activations(model: ViTModel, pictures: Tensor, batch_size: int = 256) -> Tensor:
    """What leaves a layer at every patch: (images · patches, width); the CLS token is left out."""
    read: list[Tensor] = []

    def keep(_module, _args, output) -> None:
        states = output[0] if isinstance(output, tuple) else output
        read.append(states[:, 1:].flatten(0, 1).clone())

    handle = model.get_submodule(layer_path(model)).register_forward_hook(keep)
    try:
        for batch in pictures.split(batch_size):
            model(pixel_values=batch)
    finally:
        handle.remove()
    return torch.cat(read)


def main(command_line: list[str] | None = None) -> None:
    """Trains, measures on images that were not trained on, and reads the features of one image."""
    parser = argparse.ArgumentParser(description="An SAE on the patches of a vision transformer.")
    parser.add_argument("--output_dir", default="runs/own_activations", help="where it goes (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=100_000, help="patches to train on (default: %(default)s)")
    args = parser.parse_args(command_line)
    torch.manual_seed(0)
    model = vision_model()
    patches = (IMAGE // PATCH) ** 2
    # One row in fifty is kept for calibration.
    rows = activations(model, images(args.tokens // patches * 51 // 50 + patches))
    training = SAETrainingArguments(
        output_dir=args.output_dir,
        training_tokens=args.tokens,
        train_batch_tokens=1024,
        init_tokens=4096,
        learning_rate=1e-3,
        overwrite_output_dir=True,
        html_report=False,
    )
    config = TopKSAEConfig(d_in=WIDTH, n_features=8 * WIDTH, k=8, hook_point=f"{layer_path(model)}.output")
    SAETrainer(args=training, saes=config, activations=rows).train()

    sae = SAE.from_pretrained(args.output_dir)
    fresh = activations(model, images(200))
    with torch.no_grad():
        error = (sae(fresh).reconstruction - fresh).square().sum() / (fresh - fresh.mean(0)).square().sum()
        print(f"explained variance on 200 other images: {1 - error:.3f}")
        with sae.attach(model) as run:  # reads whatever passes its place
            model(pixel_values=images(1))
    features = run.features.to_dense()[0, 1:]  # without CLS
    print(
        f"features of one image's {len(features)} patches: {int((features > 0).any(0).sum())} of {features.shape[1]}"
    )


if __name__ == "__main__":
    main()
