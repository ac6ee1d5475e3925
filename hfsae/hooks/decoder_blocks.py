"""What one block of a decoder offers, told from the names of its children.

`attn_out`, `mlp_out` and `resid_mid` are offered only in blocks whose every child is understood, because there a wrong
guess would look right:

    resid_pre + attn_out = resid_mid        resid_mid + mlp_out = resid_post

holds wherever both sides are offered. Gemma 4's blocks go on after that (`after_the_branches`): they may add what a
token's per-layer embedding says, and they multiply the stream by their `layer_scalar`.
"""

import inspect
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hfsae.hooks.points import Side

BlockPlace = tuple[str, Side]
"""A path below the block, and the side."""

_ATTENTION = ("attn", "attention", "self_attn", "self_attention")
_OTHER_MIXERS = ("mamba", "linear_attn", "conv", "temporal_block")
_ATTENTION_PROJECTION = ("c_proj", "o_proj", "out_proj", "dense", "Wo")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "mlp_block", "shared_mlp")
_MLP_PROJECTION = ("c_proj", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "Wo")
_QUERIES = {"attn.hook_q": "q_proj", "attn.hook_k": "k_proj", "attn.hook_v": "v_proj"}

TRANSFORMER_LENS_ONLY = ("attn.hook_out", "mlp.hook_out", "ln2.hook_out", "ln2.hook_normalized", *_QUERIES)
"""TransformerLens' names of places in a block that have no portable role."""

_PER_LAYER_INPUT = "post_per_layer_input_norm"
_LAYER_SCALAR = "layer_scalar"
# What Gemma 4's blocks hold beside the two branches. Experts belong to the MLP's branch.
_PER_LAYER_INPUT_PARTS = {"act_fn", "per_layer_input_gate", "per_layer_projection", _PER_LAYER_INPUT}
_EXPERTS_BESIDE = {"experts", "router"}
_EXPERTS_NORMS = {"post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"}
_ONE_BRANCH = {"norm", "mixer"}  # Nemotron-H: a block is an attention, an MLP or something else.
_CROSS_ATTENTION = {"encoder_attn", "encoder_attn_layer_norm"}

# Model types whose blocks bear the names of one of the wirings below but add up otherwise.
_UNLIKE_THEIR_NAMES = ("beam", "gpt_neox_japanese", "minimax", "openai-gpt")
# Norms of the input of a branch. BART, Marian and TrOCR have the same names for norms of the sum.
_NORMS_FIRST = ("bigbird_pegasus", "blenderbot", "mbart", "musicgen_decoder", "pegasus", "whisper")


@dataclass(frozen=True)
class _Wiring:
    """How one kind of block joins its two branches to the residual stream.

    Attributes:
        norms: Names of all the normalisations that the block holds.
        attn_end: The norm that ends the attention's branch; empty where the attention's own output is added.
        mlp_end: The same for the MLP's branch.
        mid: The norm that takes the residual stream between the branches; empty where no module takes it alone.
    """

    norms: frozenset[str]
    attn_end: str = ""
    mlp_end: str = ""
    mid: str = ""


def _pre_norm(first: str, second: str) -> _Wiring:
    return _Wiring(frozenset({first, second}), mid=second)


_WIRINGS = (
    # Pre-norm, one branch after the other.
    _pre_norm("ln_1", "ln_2"),
    _pre_norm("norm_1", "norm_2"),
    _pre_norm("attn_norm", "mlp_norm"),
    _pre_norm("input_layernorm", "post_attention_layernorm"),
    _pre_norm("input_layernorm", "pre_feedforward_layernorm"),
    _pre_norm("input_layernorm", "pre_ff_layernorm"),
    _pre_norm("attention_layernorm", "feedforward_layernorm"),
    _pre_norm("self_attn_layer_norm", "final_layer_norm"),
    _pre_norm("operator_norm", "ffn_norm"),
    _pre_norm("temporal_pre_norm", "channel_pre_norm"),
    # Both branches read the block's input.
    _Wiring(frozenset({"ln_1"})),
    _Wiring(frozenset({"input_layernorm"})),
    _Wiring(frozenset({"ln_attn", "ln_mlp"})),
    # A norm before and a norm after each branch (Gemma 2, 3 and 4; AFMoE; GLM-4).
    _Wiring(
        frozenset(
            {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}
        ),
        attn_end="post_attention_layernorm",
        mlp_end="post_feedforward_layernorm",
        mid="pre_feedforward_layernorm",
    ),
    _Wiring(
        frozenset({"input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"}),
        attn_end="post_attention_layernorm",
        mlp_end="post_mlp_layernorm",
        mid="pre_mlp_layernorm",
    ),
    _Wiring(
        frozenset({"input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"}),
        attn_end="post_self_attn_layernorm",
        mlp_end="post_mlp_layernorm",
        mid="post_attention_layernorm",
    ),
    # A norm only after each branch (OLMo 2 and 3, EXAONE 4). The stream between them enters the MLP itself, where
    # reading and writing mean `mlp_in`, so there is no `resid_mid`.
    _Wiring(
        frozenset({"post_attention_layernorm", "post_feedforward_layernorm"}),
        attn_end="post_attention_layernorm",
        mlp_end="post_feedforward_layernorm",
    ),
)


def block_places(block: nn.Module, config: Any) -> dict[str, BlockPlace]:
    """What a block offers by portable role (`"resid_pre"`, `"attn_out"`, ...).

    Args:
        block: One layer of the decoder.
        config: The text model's config.
    """
    parts, wiring = _parts(block), _wiring(block, config)
    places: dict[str, BlockPlace] = {"resid_pre": ("", "input"), "resid_post": ("", "output")}
    if parts.attention_projection:
        places["attn_z"] = (parts.attention_projection, "input")
    if parts.mlp_reads:
        places["mlp_in"] = (parts.mlp_reads, "input")
    if parts.mlp_projection:
        places["mlp_act"] = (parts.mlp_projection, "input")
    if wiring is None:
        return places
    if wiring.mid:
        places["resid_mid"] = (wiring.mid, "input")
    if parts.several_mlps and wiring.mid:
        places["mlp_in"] = (wiring.mid, "output")  # Every one of them reads this norm.
    if _adds_plainly(block):
        if parts.attention and not _has_another_branch_before_the_mlp(block, config):
            places["attn_out"] = (wiring.attn_end, "output") if wiring.attn_end else parts.attention_out(block)
        if parts.mlp and not parts.several_mlps:
            places["mlp_out"] = (wiring.mlp_end, "output") if wiring.mlp_end else parts.mlp_out(block)
    return places


def transformer_lens_places(block: nn.Module, config: Any) -> dict[str, BlockPlace]:
    """What a block offers by those names of TransformerLens that have no portable role of their own.

    Raw outputs of the two branches' modules, which differ from `attn_out` and `mlp_out` where a norm follows. Then the
    norm before the MLP, and queries, keys and values as their matrices return them, the heads flattened.

    Args:
        block: One layer of the decoder.
        config: The text model's config.
    """
    parts, wiring = _parts(block), _wiring(block, config)
    places: dict[str, BlockPlace] = {}
    if parts.attention:
        places["attn.hook_out"] = parts.attention_out(block)
    if parts.mlp and not parts.several_mlps:
        places["mlp.hook_out"] = parts.mlp_out(block)
    if wiring is not None and wiring.mid:
        places["ln2.hook_out"] = (wiring.mid, "output")
        if not any(True for _ in block.get_submodule(wiring.mid).parameters()):
            places["ln2.hook_normalized"] = (wiring.mid, "output")
    return places | _queries(block, parts)


@dataclass(frozen=True)
class Streams:
    """Several residual streams that go side by side from block to block.

    Attributes:
        number: How many.
        axis: The axis of a block's input and output that tells them apart.
    """

    number: int
    axis: int


def streams_of(config: Any) -> Streams | None:
    """The streams of a model's blocks, (streams, batch, seq, d) or (batch, seq, streams, d); None for a single one.

    Args:
        config: The text model's config.
    """
    if number := getattr(config, "altup_num_inputs", None):  # Gemma 3n
        return Streams(number, axis=0)
    if number := getattr(config, "hc_mult", None):  # hyper-connections: DeepSeek V4, HY V4
        return Streams(number, axis=2)
    return None


def after_the_branches(block: nn.Module) -> tuple[str, ...]:
    """What turns `resid_mid + mlp_out` into `resid_post`, in order; empty where the two are equal.

    `"post_per_layer_input_norm"` names a module whose output is added, `"layer_scalar"` a tensor that multiplies.
    """
    children = dict(block.named_children())
    added = (_PER_LAYER_INPUT,) if _PER_LAYER_INPUT in children else ()
    return (*added, _LAYER_SCALAR) if isinstance(getattr(block, _LAYER_SCALAR, None), Tensor) else added


@dataclass(frozen=True)
class _Parts:
    """Where a block's branches lie, as paths below the block; empty where there is none.

    Attributes:
        attention: The attention.
        attention_projection: Its last matrix.
        mlp: The MLP, or what stands for it.
        mlp_reads: The module whose input is all that the MLP reads.
        mlp_projection: Its last matrix; empty for fused experts.
        several_mlps: Whether several modules read one norm, and only their sum is the MLP's output.
    """

    attention: str = ""
    attention_projection: str = ""
    mlp: str = ""
    mlp_reads: str = ""
    mlp_projection: str = ""
    several_mlps: bool = False

    def attention_out(self, block: nn.Module) -> BlockPlace:
        """What the attention adds, before any norm."""
        takes_residual = _takes_residual(block.get_submodule(self.attention))
        return (self.attention_projection if takes_residual else self.attention, "output")

    def mlp_out(self, block: nn.Module) -> BlockPlace:
        """What the MLP adds, before any norm."""
        return (self.mlp_projection if _takes_residual(block.get_submodule(self.mlp)) else self.mlp, "output")


def _parts(block: nn.Module) -> _Parts:
    children = dict(block.named_children())
    if any(isinstance(child, nn.ModuleList) for child in children.values()):
        return _Parts()  # Several attentions and MLPs, one after the other (LongCat).
    attention = next((name for name in _ATTENTION if name in children), "")
    mlps = [name for name in _MLP if name in children]
    if children.keys() == _ONE_BRANCH:
        inside = {name for name, _ in children["mixer"].named_children()}
        attention = "mixer" if {"q_proj", "o_proj"} <= inside else ""
        mlps = ["mixer"] if inside & {"down_proj", "experts"} else []
    found = _Parts(attention, _projection(children, attention, _ATTENTION_PROJECTION))
    if not mlps:
        # OPT's blocks hold the MLP's two matrices themselves.
        is_opt = {"fc1", "fc2"} <= children.keys()
        return replace(found, mlp="fc2", mlp_reads="fc1", mlp_projection="fc2") if is_opt else found
    if len(mlps) > 1:
        return replace(found, mlp=mlps[0], several_mlps=True)
    if _EXPERTS_BESIDE & children.keys():  # They read the stream through a norm of their own.
        return replace(found, mlp=mlps[0])
    projection = _projection(children, mlps[0], _MLP_PROJECTION)
    return replace(found, mlp=mlps[0], mlp_reads=mlps[0], mlp_projection=projection)


def _projection(children: dict[str, nn.Module], branch: str, names: tuple[str, ...]) -> str:
    """Path of a branch's last matrix; empty where there is none, as in a mixture of fused experts."""
    if not branch:
        return ""
    inner = dict(children[branch].named_children())
    if set(inner) == {"attention"}:  # GPT-Neo wraps its attention once more.
        return _projection(children | {f"{branch}.attention": inner["attention"]}, f"{branch}.attention", names)
    return next((f"{branch}.{name}" for name in names if name in inner), "")


def _queries(block: nn.Module, parts: _Parts) -> dict[str, BlockPlace]:
    """Queries, keys and values, where each has a matrix of its own that returns nothing else."""
    attention, _, projection = parts.attention_projection.rpartition(".")
    if not attention:
        return {}
    module = block.get_submodule(attention)
    widths = {name: getattr(getattr(module, matrix, None), "out_features", None) for name, matrix in _QUERIES.items()}
    queries, keys, values = widths.values()
    if queries is None or queries != getattr(getattr(module, projection), "in_features", None):
        return {}  # Fused, or with a gate beside the queries, or compressed.
    own_keys = keys is not None and keys == values  # Gemma 3n's last layers use those of an earlier one.
    names = list(_QUERIES) if own_keys else list(_QUERIES)[:1]
    return {name: (f"{attention}.{_QUERIES[name]}", "output") for name in names}


def _wiring(block: nn.Module, config: Any) -> _Wiring | None:
    """The block's wiring, or None unless every child is accounted for."""
    children = {name for name, _ in block.named_children()}
    if config.model_type in _UNLIKE_THEIR_NAMES:
        return None
    if not getattr(config, "do_layer_norm_before", True):
        return None  # The stream itself is normalised after each addition (OPT's option).
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        return None  # The stream restarts from the norm's output (Bloom's option).
    if children == _ONE_BRANCH:
        return _Wiring(frozenset({"norm"}))
    parts = _parts(block)
    if not parts.mlp or sum(name in children for name in _ATTENTION + _OTHER_MIXERS) == 0:
        return None
    known = {*_ATTENTION, *_OTHER_MIXERS, *_MLP, "fc1", "fc2", "activation_fn"}
    if _PER_LAYER_INPUT_PARTS <= children:
        known |= _PER_LAYER_INPUT_PARTS
    if children >= _EXPERTS_BESIDE | _EXPERTS_NORMS:
        known |= _EXPERTS_BESIDE | _EXPERTS_NORMS
    if config.model_type in _NORMS_FIRST:
        known |= _CROSS_ATTENTION
    norms = {name for name in children if name not in known and "dropout" not in name}
    if getattr(config, "use_parallel_residual", False):  # GPT-NeoX and StableLM, where it is an option.
        return _Wiring(frozenset(norms))
    return next((wiring for wiring in _WIRINGS if wiring.norms == norms), None)


def _has_another_branch_before_the_mlp(block: nn.Module, config: Any) -> bool:
    """Whether the stream changes between `resid_pre` and `resid_mid` by more than the attention."""
    children = {name for name, _ in block.named_children()}
    mixers = sum(name in children for name in _ATTENTION + _OTHER_MIXERS)
    return mixers > 1 or (bool(_CROSS_ATTENTION & children) and bool(getattr(config, "is_encoder_decoder", False)))


def _adds_plainly(block: nn.Module) -> bool:
    """False where the block scales what its modules return (Granite, MiniCPM 3; Doge)."""
    own_tensors = [*block.named_parameters(recurse=False), *block.named_buffers(recurse=False)]
    own_numbers = [value for name, value in vars(block).items() if isinstance(value, float) and "dropout" not in name]
    return all(name == _LAYER_SCALAR for name, _ in own_tensors) and all(number == 1 for number in own_numbers)


def _takes_residual(branch: nn.Module) -> bool:
    """Whether a branch is handed the residual stream and returns the sum (Bloom, MPT's MLP)."""
    return "residual" in inspect.signature(branch.forward).parameters
