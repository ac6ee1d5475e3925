"""The linear model of a Llama and of a GPT-2 written out by hand, and the Jacobian of all its nodes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hfsae import SAE


@dataclass(frozen=True)
class Family:
    """Where the parts of a block lie."""

    blocks: Callable
    embeddings: Callable
    norms: tuple[str, str, Callable]
    values: Callable
    queries_and_keys: Callable
    out: Callable
    rms: bool


def _llama_values(block, x: Tensor) -> Tensor:
    attention = block.self_attn
    values = (x @ attention.v_proj.weight.T).unflatten(-1, (-1, attention.head_dim))
    return values.repeat_interleave(attention.num_key_value_groups, 1)


def _gpt2_values(block, x: Tensor) -> Tensor:
    width = x.shape[-1]
    projected = x @ block.attn.c_attn.weight + block.attn.c_attn.bias
    return projected[:, 2 * width :].unflatten(-1, (block.attn.num_heads, -1))


def _llama_queries_and_keys(model, block, x: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.self_attn
    heads = [
        (x @ weight.T).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)[None]
        for weight in (attention.q_proj.weight, attention.k_proj.weight)
    ]
    cos, sin = model.model.rotary_emb(x[None], torch.arange(len(x))[None])
    queries, keys = apply_rotary_pos_emb(*heads, cos, sin)
    return queries[0], keys[0].repeat_interleave(attention.num_key_value_groups, 0)


def _gpt2_queries_and_keys(model, block, x: Tensor) -> tuple[Tensor, Tensor]:
    projected = x @ block.attn.c_attn.weight + block.attn.c_attn.bias
    queries, keys, _ = (
        part.unflatten(-1, (block.attn.num_heads, -1)).transpose(0, 1) for part in projected.split(x.shape[-1], -1)
    )
    return queries, keys


LLAMA = Family(
    blocks=lambda model: model.model.layers,
    embeddings=lambda model, ids: model.model.embed_tokens.weight[ids],
    norms=("input_layernorm", "post_attention_layernorm", lambda model: model.model.norm),
    values=_llama_values,
    queries_and_keys=_llama_queries_and_keys,
    out=lambda block, z: z @ block.self_attn.o_proj.weight.T,
    rms=True,
)
GPT2 = Family(
    blocks=lambda model: model.transformer.h,
    embeddings=lambda model, ids: model.transformer.wte.weight[ids] + model.transformer.wpe.weight[: len(ids)],
    norms=("ln_1", "ln_2", lambda model: model.transformer.ln_f),
    values=_gpt2_values,
    queries_and_keys=_gpt2_queries_and_keys,
    out=lambda block, z: z @ block.attn.c_proj.weight + block.attn.c_proj.bias,
    rms=False,
)
FAMILIES = {"llama": LLAMA, "gpt2": GPT2}


class ByHand:
    """A model with a transcoder (no left-out token but the first) for every MLP, at one prompt."""

    def __init__(self, name: str, model: PreTrainedModel, saes: list[SAE], ids: Tensor):
        self.family, self.model, self.saes = FAMILIES[name], model, saes
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        with torch.no_grad():
            self.patterns = [p[0] for p in eager(ids[None], output_attentions=True).attentions]
            self.embeddings = self.family.embeddings(model, ids)
            self.denominators: list[Tensor] = []
            self.features, self.errors = [], []
            self.clean = self._run(self.embeddings, self._note_and_keep)

    def _norm(self, module, x: Tensor, number: int) -> Tensor:
        z = x if self.family.rms else x - x.mean(-1, keepdim=True)
        if number == len(self.denominators):
            epsilon = module.variance_epsilon if self.family.rms else module.eps
            self.denominators.append((z.square().mean(-1, keepdim=True) + epsilon).sqrt())
        scaled = module.weight * z / self.denominators[number]
        return scaled if self.family.rms else scaled + module.bias

    def _run(
        self, embeddings: Tensor, mlp: Callable, after: Callable = lambda layer, x: x
    ) -> tuple[list[Tensor], Tensor]:
        x, read, number = embeddings, [], 0
        self.attended: list[Tensor] = []
        first, second, last = self.family.norms
        for layer, block in enumerate(self.family.blocks(self.model)):
            self.attended.append(self._norm(getattr(block, first), x, number))
            values = self.family.values(block, self.attended[-1])
            mixed = torch.einsum("hqk,khd->qhd", self.patterns[layer], values)
            x = x + self.family.out(block, mixed.flatten(1))
            read.append(self._norm(getattr(block, second), x, number + 1))
            x = after(layer, x + mlp(layer, block, read[-1]))
            number += 2
        return read, self._norm(last(self.model), x, number)[-1]

    def _note_and_keep(self, layer: int, block, read: Tensor) -> Tensor:
        features = self.saes[layer].encode(read)
        features[0] = 0
        written = block.mlp(read)
        error = written - self.saes[layer].decode(features, read)
        error[0] = written[0]
        self.features.append(features)
        self.errors.append(error)
        return written

    def nodes(self, scales: list[Tensor], errors: list[Tensor], embeddings: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pre-activations of all features (S, n) by layer, and all logits, from factors of all sources."""

        def mlp(layer: int, block, read: Tensor) -> Tensor:
            sae = self.saes[layer]
            decoded = sae.decode(self.features[layer] * scales[layer], read)
            kept = torch.cat([torch.zeros_like(decoded[:1]), decoded[1:]])
            return kept + self.errors[layer] * errors[layer][:, None]

        read, hidden = self._run(self.embeddings * embeddings[:, None], mlp)
        pre = [sae.pre_activations(x) for sae, x in zip(self.saes, read, strict=True)]
        return pre, self.model.get_output_embeddings()(hidden)

    def ones(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        ones = torch.ones(len(self.embeddings), dtype=torch.float64)
        return [torch.ones_like(f) for f in self.features], [ones for _ in self.errors], ones

    def queries_and_keys(self, layer: int, *factors) -> tuple[Tensor, Tensor]:
        """(heads, S, d) each, as `nodes` has them, before they are multiplied."""
        self.nodes(*factors)
        block = self.family.blocks(self.model)[layer]
        return self.family.queries_and_keys(self.model, block, self.attended[layer])

    def jacobian(self):
        """By kind of node, by kind of source: see `nodes`."""
        return jacrev(self.nodes, argnums=(0, 1, 2))(*self.ones())


class CrossLayerByHand(ByHand):
    """The same with one cross-layer transcoder of all MLPs."""

    def _note_and_keep(self, layer: int, block, read: Tensor) -> Tensor:
        (sae,) = self.saes
        features = sae.encode_layer(layer, read).to_dense()
        features[0] = 0
        self.features.append(features)
        written = block.mlp(read)
        self.errors.append(written - self._decoded(layer, self.features, read))
        return written

    def _decoded(self, layer: int, features: list[Tensor], read: Tensor) -> Tensor:
        """What all layers up to one write there, by the transcoder's own decoder of all layers together."""
        (sae,) = self.saes
        n, layers = sae.config.features_per_layer, sae.config.n_layers
        nothing = read.new_zeros(len(read), n)
        whole = torch.cat([*features[: layer + 1], *[nothing] * (layers - layer - 1)], 1)
        read_at_all = torch.cat([read if other == layer else torch.zeros_like(read) for other in range(layers)], 1)
        decoded = sae.decode(whole, read_at_all).split(sae.config.output_widths, -1)[layer]
        return torch.cat([torch.zeros_like(decoded[:1]), decoded[1:]])

    def nodes(self, scales: list[Tensor], errors: list[Tensor], embeddings: Tensor) -> tuple[list[Tensor], Tensor]:
        scaled = [features * scale for features, scale in zip(self.features, scales, strict=True)]

        def mlp(layer: int, block, read: Tensor) -> Tensor:
            return self._decoded(layer, scaled, read) + self.errors[layer] * errors[layer][:, None]

        read, hidden = self._run(self.embeddings * embeddings[:, None], mlp)
        (sae,) = self.saes
        pre = sae.pre_activations(torch.cat(read, 1)).split(sae.config.features_per_layer, -1)
        return list(pre), self.model.get_output_embeddings()(hidden)


class StreamByHand(ByHand):
    """The same with an SAE at the end of every block; errors are what MLPs write, then what the SAEs leave out."""

    def __init__(self, name: str, model: PreTrainedModel, saes: list[SAE], ids: Tensor):
        self.written: list[Tensor] = []
        super().__init__(name, model, saes, ids)
        self.errors = self.written + self.errors

    def _note_and_keep(self, layer: int, block, read: Tensor) -> Tensor:
        self.written.append(block.mlp(read))
        return self.written[-1]

    def _run(self, embeddings: Tensor, mlp: Callable, after: Callable | None = None) -> tuple[list[Tensor], Tensor]:
        return super()._run(embeddings, mlp, after or self._note_the_stream)

    def _note_the_stream(self, layer: int, x: Tensor) -> Tensor:
        features = self.saes[layer].encode(x)
        features[0] = 0
        error = x - self.saes[layer].decode(features)
        error[0] = x[0]
        self.features.append(features)
        self.errors.append(error)
        return x

    def nodes(self, scales: list[Tensor], errors: list[Tensor], embeddings: Tensor) -> tuple[list[Tensor], Tensor]:
        layers, pre = len(self.saes), []

        def mlp(layer: int, block, read: Tensor) -> Tensor:
            return self.errors[layer] * errors[layer][:, None]

        def after(layer: int, x: Tensor) -> Tensor:
            pre.append(self.saes[layer].pre_activations(x))
            decoded = self.saes[layer].decode(self.features[layer] * scales[layer])
            kept = torch.cat([torch.zeros_like(decoded[:1]), decoded[1:]])
            return kept + self.errors[layers + layer] * errors[layers + layer][:, None]

        _, hidden = self._run(self.embeddings * embeddings[:, None], mlp, after)
        return pre, self.model.get_output_embeddings()(hidden)
