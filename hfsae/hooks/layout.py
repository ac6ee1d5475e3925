"""Where the well-known places of a decoder lie in its module tree, found from the tree's structure.

Model classes are not listed here. The blocks are the `ModuleList` that has one entry a layer, and what a block offers
follows from the names and number of its children. `attn_out`, `mlp_out` and `resid_mid` are offered only in blocks
whose every child is understood, because there a wrong guess would look right:

    resid_pre + attn_out = resid_mid        resid_mid + mlp_out = resid_post

holds wherever both sides are offered. In anything else the places are still there under their canonical names.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from hfsae.hooks.points import HookPoint, HookPointError, Side

LAYER_ROLES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_act", "mlp_out")
"""What a portable name can say of a layer, in the order in which a model's places are listed."""

EMBED = "embed"
"""The portable name of the token embedding's output."""

_ATTENTION = ("attn", "attention", "self_attn", "self_attention")
_OTHER_MIXERS = ("mamba", "linear_attn", "conv", "temporal_block")
_ATTENTION_PROJECTION = ("c_proj", "o_proj", "out_proj", "dense", "Wo")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "mlp_block")
_MLP_PROJECTION = ("c_proj", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "Wo")

# Model types whose blocks bear the names of one of the wirings below but add up otherwise.
_UNLIKE_THEIR_NAMES = ("beam", "gpt_neox_japanese", "minimax", "openai-gpt")


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
    # A norm before and a norm after each branch (Gemma 2 and 3; AFMoE; GLM-4).
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


class DecoderLayout:
    """The decoder of one model: its blocks, and the portable names that each of them offers.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.

    Raises:
        HookPointError: If the model has no decoder whose layers can be told from other lists of modules.
    """

    def __init__(self, model: nn.Module):
        config: Any = getattr(model, "config", None)
        self.model = model
        self.config: Any = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
        n_layers = getattr(self.config, "num_hidden_layers", None)
        if n_layers is None:
            raise HookPointError(
                f"{type(model).__name__} carries no transformers config that counts its layers; name the place by its "
                f"module path and side, such as 'layers.3.output'"
            )
        self.layers_path, self.blocks = _find_blocks(model, n_layers)

    @classmethod
    def find(cls, model: nn.Module) -> "DecoderLayout | None":
        """The model's layout, or None where it has no recognisable decoder."""
        try:
            return cls(model)
        except HookPointError:
            return None

    @property
    def decoder_path(self) -> str:
        """Path of the module that holds the list of blocks; empty if that is the model itself."""
        return self.layers_path.rpartition(".")[0]

    @cached_property
    def embed(self) -> HookPoint | None:
        """Output of the token embedding; None where the model does not say which module that is."""
        try:
            embedding = self.model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        except (AttributeError, NotImplementedError):
            return None
        path = next((path for path, module in self.model.named_modules() if module is embedding), None)
        return HookPoint(path, "output") if path else None

    def places(self, layer: int) -> dict[str, HookPoint]:
        """What one layer offers, by role (`"resid_pre"`, `"attn_out"`, ...)."""
        block = self.block_path(layer)
        found = _block_places(self.blocks[layer], self.config)
        return {role: _below(block, *found[role]) for role in LAYER_ROLES if role in found}

    def block_path(self, layer: int) -> str:
        """Path of one layer's block."""
        return f"{self.layers_path}.{layer}"

    def layer_of(self, path: str) -> int | None:
        """The layer whose block is, or holds, the module at `path`; None for a module outside the blocks."""
        head, _, inside = path.partition(f"{self.layers_path}.")
        index = inside.partition(".")[0]
        return int(index) if not head and index.isdecimal() else None

    def block_around(self, path: str) -> nn.Module | None:
        """The block that is, or holds, the module at `path`; None for a module outside the blocks."""
        layer = self.layer_of(path)
        return None if layer is None else self.blocks[layer]

    def roles(self, hook_point: HookPoint) -> set[str]:
        """What portable names say of a place in a layer; empty for one that has no portable name."""
        layer = self.layer_of(hook_point.path)
        return set() if layer is None else {role for role, place in self.places(layer).items() if place == hook_point}

    def has_plain_stream(self, hook_point: HookPoint) -> bool:
        """Whether the residual stream around a place in a layer is known to be a single one, `hidden_size` wide."""
        layer = self.layer_of(hook_point.path)
        return layer is not None and not {"resid_mid", "mlp_out"}.isdisjoint(self.places(layer))


def _find_blocks(model: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """The shallowest `ModuleList` of the right length: in the model's decoder, else anywhere in it."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # pyright: ignore[reportCallIssue]
    prefix = next((path for path, module in model.named_modules() if module is decoder), "")
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    inside = [(path, module) for path, module in lists if not prefix or path.startswith(f"{prefix}.")]
    candidates = inside or lists
    depth = min((path.count(".") for path, _ in candidates), default=0)
    shallowest = [(path, module) for path, module in candidates if path.count(".") == depth]
    if len(shallowest) != 1:
        found = ", ".join(path for path, _ in shallowest) or "none"
        raise HookPointError(
            f"cannot tell the decoder layers of {type(model).__name__}: its config says {n_layers} layers, and the "
            f"lists of {n_layers} modules are: {found}. Name the place by its module path and side instead"
        )
    return shallowest[0]


def _below(block: str, path: str, side: Side) -> HookPoint:
    return HookPoint(f"{block}.{path}" if path else block, side)


def _block_places(block: nn.Module, config: Any) -> dict[str, tuple[str, Side]]:
    """What a block offers: role to (path below the block, side)."""
    children = dict(block.named_children())
    places: dict[str, tuple[str, Side]] = {"resid_pre": ("", "input"), "resid_post": ("", "output")}

    attention = next((name for name in _ATTENTION if name in children), "")
    attention_projection = _projection(children, attention, _ATTENTION_PROJECTION)
    if attention_projection:
        places["attn_z"] = (attention_projection, "input")

    mlp = next((name for name in _MLP if name in children), "")
    mlp_projection = _projection(children, mlp, _MLP_PROJECTION)
    if mlp:
        places["mlp_in"] = (mlp, "input")
    elif {"fc1", "fc2"} <= children.keys():  # OPT's blocks hold the MLP's two matrices themselves.
        mlp = mlp_projection = "fc2"
        places["mlp_in"] = ("fc1", "input")
    if mlp_projection:
        places["mlp_act"] = (mlp_projection, "input")

    wiring = _wiring(children, config)
    if wiring is None or not mlp:
        return places
    if wiring.mid:
        places["resid_mid"] = (wiring.mid, "input")
    if _adds_plainly(block):
        if attention:
            branch = attention_projection if _takes_residual(children[attention]) else attention
            places["attn_out"] = (wiring.attn_end or branch, "output")
        branch = mlp_projection if _takes_residual(children[mlp]) else mlp
        places["mlp_out"] = (wiring.mlp_end or branch, "output")
    return places


def _projection(children: dict[str, nn.Module], branch: str, names: tuple[str, ...]) -> str:
    """Path of a branch's last matrix; empty where there is none, as in a mixture of fused experts."""
    if not branch:
        return ""
    inner = dict(children[branch].named_children())
    if set(inner) == {"attention"}:  # GPT-Neo wraps its attention once more.
        return _projection(children | {f"{branch}.attention": inner["attention"]}, f"{branch}.attention", names)
    return next((f"{branch}.{name}" for name in names if name in inner), "")


def _wiring(children: dict[str, nn.Module], config: Any) -> _Wiring | None:
    """The block's wiring, or None unless every child is accounted for and there is exactly one token mixer."""
    if sum(name in children for name in _ATTENTION + _OTHER_MIXERS) != 1:
        return None
    if config.model_type in _UNLIKE_THEIR_NAMES:
        return None
    if not getattr(config, "do_layer_norm_before", True):
        return None  # The stream itself is normalised after each addition (OPT's option).
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        return None  # The stream restarts from the norm's output (Bloom's option).
    known = {*_ATTENTION, *_OTHER_MIXERS, *_MLP, "fc1", "fc2", "activation_fn"}
    norms = {name for name in children if name not in known and "dropout" not in name}
    if getattr(config, "use_parallel_residual", False):  # GPT-NeoX and StableLM, where it is an option.
        return _Wiring(frozenset(norms))
    return next((wiring for wiring in _WIRINGS if wiring.norms == norms), None)


def _adds_plainly(block: nn.Module) -> bool:
    """False where the block scales what its modules return, or the sum (Granite, MiniCPM 3; Doge, Gemma 4)."""
    own_tensors = [*block.parameters(recurse=False), *block.buffers(recurse=False)]
    own_numbers = [value for name, value in vars(block).items() if isinstance(value, float) and "dropout" not in name]
    return not own_tensors and all(number == 1 for number in own_numbers)


def _takes_residual(branch: nn.Module) -> bool:
    """Whether a branch is handed the residual stream and returns the sum (Bloom, MPT's MLP)."""
    return "residual" in inspect.signature(branch.forward).parameters
