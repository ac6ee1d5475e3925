"""The embedded language model, altered so that real mistakes in the use of an SAE can be made with it."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfsae import SAE, SAETrainer, SAETrainingArguments

TINY_LM = Path(__file__).parents[2] / "examples" / "tiny_lm"


def tiny_lm() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(TINY_LM)


@torch.no_grad()
def unprocessed() -> PreTrainedModel:
    """The same function, with what published models have and processing takes away: means, and norms that weigh.

    Every reader of the residual stream is a layer norm, which takes the mean off; what a norm's weight and bias do
    the layer after it undoes.
    """
    model = tiny_lm()
    draw = torch.Generator().manual_seed(0)
    model.transformer.wpe.weight += 3 * torch.randn(256, 1, generator=draw)
    for block in model.transformer.h:
        for writer in (block.attn.c_proj, block.mlp.c_proj):
            writer.weight += torch.randn(len(writer.weight), 1, generator=draw)
            writer.bias += 2
        for norm, reader in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            weight, bias = torch.randn(128, generator=draw).exp(), torch.randn(128, generator=draw)
            reader.weight /= weight[:, None]
            reader.bias -= bias @ reader.weight
            norm.weight *= weight
            norm.bias.copy_(norm.bias * weight + bias)
    return model


@torch.no_grad()
def processed() -> PreTrainedModel:
    """`unprocessed` as TransformerLens would load it: what writes to the stream is centred, norms are folded."""
    model = unprocessed()
    model.transformer.wpe.weight -= model.transformer.wpe.weight.mean(-1, keepdim=True)
    for block in model.transformer.h:
        for writer in (block.attn.c_proj, block.mlp.c_proj):
            centre(writer)
        for norm, reader in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
            fold(norm, reader)
    return model


@torch.no_grad()
def fold(norm: nn.LayerNorm, reader: Conv1D) -> None:
    """Moves a norm's weight and bias into the linear layer that reads it (fold_ln of TransformerLens)."""
    reader.bias += norm.bias @ reader.weight
    reader.weight *= norm.weight[:, None]
    norm.weight.fill_(1)
    norm.bias.fill_(0)


@torch.no_grad()
def centre(writer: Conv1D) -> None:
    """Takes the mean over dimensions off what a linear layer writes (center_writing_weights of TransformerLens)."""
    writer.weight -= writer.weight.mean(-1, keepdim=True)
    writer.bias -= writer.bias.mean()


@torch.no_grad()
def leaning_on_bos() -> PreTrainedModel:
    """Every token looks at a BOS where there is one, and takes a large vector from it."""
    model = tiny_lm()
    first, wte, wpe = model.transformer.h[0], model.transformer.wte.weight, model.transformer.wpe.weight
    seen, others = first.ln_1(wte[0] + wpe[0]), first.ln_1(wte.mean(0) + wpe[0])
    only_bos = seen - others * (seen @ others) / (others @ others)
    only_bos /= only_bos @ seen
    query, key, value = slice(0, 32), slice(128, 160), slice(256, 288)  # of the first of four heads
    attention = first.attn.c_attn
    for part in (query, key, value):
        attention.weight[:, part] = 0
        attention.bias[part] = 0
    attention.bias[query] = 5
    attention.weight[:, key] = 5 * only_bos[:, None]
    attention.weight[:, value] = 20 * only_bos[:, None]
    return model


@torch.no_grad()
def with_a_massive_first_position() -> PreTrainedModel:
    """The activation at position 0 is nearly a hundred times as large as the others, as in GPT-2."""
    model = tiny_lm()
    model.transformer.wpe.weight[0] *= 1000
    return model


def train(model: PreTrainedModel, folder: Path, place: str, training_tokens: int = 32_768, **fields) -> SAE:
    """An SAE of a language model, with its figures; as in `trained_folder`."""
    model.save_pretrained(folder / "lm")
    AutoTokenizer.from_pretrained(TINY_LM).save_pretrained(folder / "lm")
    args = SAETrainingArguments(
        output_dir=str(folder / "saes"),
        model_name_or_path=str(folder / "lm"),
        dataset_name="python-stdlib",
        architecture="topk",
        n_features=256,
        k=8,
        hook_point=place,
        training_tokens=training_tokens,
        train_batch_tokens=1024,
        init_tokens=2048,
        calibration_tokens=2048,
        eval_tokens=3000,
        save_steps=0,
        disable_tqdm=True,
        **fields,
    )
    SAETrainer(args=args).train()
    return SAE.from_pretrained(folder / "saes")
