"""Where the well-known places of a decoder lie in its module tree, found from the tree's structure.

Model classes are not listed here. The blocks are those of the list of modules that the model itself treats as its
blocks, however many its config says there are. `hfsae.hooks.decoder_blocks` says what each of them offers. A place
without a portable name keeps its canonical name.
"""

import inspect
from functools import cached_property
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hfsae.hooks.decoder_blocks import (
    BlockPlace,
    Streams,
    after_the_branches,
    block_places,
    streams_of,
    transformer_lens_places,
)
from hfsae.hooks.inner import inner_model
from hfsae.hooks.points import HookPoint, HookPointError
from hfsae.hooks.side_by_side import SideBySide

LAYER_ROLES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_act", "mlp_out")
"""What a portable name can say of a layer, in the order in which a model's places are listed."""

EMBED = "embed"
"""The portable name of the token embedding's output."""

FINAL_NORM = "final_norm"
"""The portable name of the output of the norm after the last block, which the LM head reads."""

# The norm after the last block, by its name beside the list of blocks.
_FINAL_NORMS = (
    *("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm", "norm_f", "layer_norm", "ln_out"),
    *("embedding_norm", "out_norm", "output_layernorm", "layernorm", "ln"),
)
_LAST_NORM_FIRST_TOO = ("nanochat",)  # It normalises the embeddings with the same module.
_COUNTS = ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_layers", "n_layer", "n_layers")
"""What configs call the number of layers; some of these count an encoder's, or cache slots."""


class DecoderLayout:
    """The decoder of one model: its blocks, and the portable names that each of them offers.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.

    Raises:
        HookPointError: If the model has no decoder whose blocks can be told from other lists of modules. Likewise if
            its blocks pass more than the residual stream from one to the next.
    """

    def __init__(self, model: nn.Module):
        if isinstance(model, SideBySide):
            raise HookPointError("models side by side have a decoder each; name one of them in front of a place")
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "get_text_config"):
            raise HookPointError(_without_config(model))
        self.model = model
        self.config: Any = config.get_text_config(decoder=True)
        self.layers_path, self.blocks = _find_blocks(model, self.config)
        self._places: dict[int, dict[str, HookPoint]] = {}
        self._lens_places: dict[int, dict[str, HookPoint]] = {}

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
        return HookPoint(path, "output") if path and is_called(embedding) else None

    @cached_property
    def final_norm(self) -> HookPoint | None:
        """Output of the norm after the last block; None where there is none beside the list of blocks."""
        around = self.model.get_submodule(self.decoder_path)
        children = [name for name, _ in around.named_children()]
        name = next((name for name in _FINAL_NORMS if name in children), None)
        visit = 1 if self.config.model_type in _LAST_NORM_FIRST_TOO else None
        return HookPoint(f"{self.decoder_path}.{name}".lstrip("."), "output", visit) if name else None

    @cached_property
    def streams(self) -> Streams | None:
        """The residual streams that go side by side from block to block; None where there is one."""
        return streams_of(self.config)

    def stream_axis(self, hook_point: HookPoint) -> int | None:
        """The axis on which a place's stream is chosen; None where its name chooses none."""
        if hook_point.stream is None:
            return None
        if self.streams is None or not self.roles(hook_point) & {"resid_pre", "resid_post"}:
            raise HookPointError(
                f"{hook_point} names one of several streams, but {type(self.model).__name__} has only one there: "
                f"leave [{hook_point.stream}] out"
            )
        if hook_point.stream >= self.streams.number:
            raise HookPointError(
                f"{hook_point}: {type(self.model).__name__} has {self.streams.number} streams, 0 to "
                f"{self.streams.number - 1}"
            )
        return self.streams.axis

    def places(self, layer: int) -> dict[str, HookPoint]:
        """What one layer offers, by role (`"resid_pre"`, `"attn_out"`, ...)."""
        if layer not in self._places:
            found = block_places(self.blocks[layer], self.config)
            self._places[layer] = {role: self._below(layer, found[role]) for role in LAYER_ROLES if role in found}
        return self._places[layer]

    def transformer_lens_places(self, layer: int) -> dict[str, HookPoint]:
        """What one layer offers beside that, by TransformerLens' names (`"mlp.hook_out"`, `"attn.hook_q"`, ...)."""
        if layer not in self._lens_places:
            found = transformer_lens_places(self.blocks[layer], self.config)
            self._lens_places[layer] = {name: self._below(layer, place) for name, place in found.items()}
        return self._lens_places[layer]

    def after_the_branches(self, layer: int) -> tuple[str, ...]:
        """What turns `resid_mid + mlp_out` of a layer into its `resid_post`; empty where the two are equal."""
        return after_the_branches(self.blocks[layer])

    def _below(self, layer: int, place: BlockPlace) -> HookPoint:
        path, side = place
        return HookPoint(f"{self.block_path(layer)}.{path}" if path else self.block_path(layer), side)

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
        places = {} if layer is None else self.places(layer)
        asked = (hook_point.path, hook_point.side)
        return {role for role, place in places.items() if (place.path, place.side) == asked}

    def has_plain_stream(self, hook_point: HookPoint) -> bool:
        """Whether the residual stream around a place in a layer is known to be a single one, `hidden_size` wide."""
        layer = self.layer_of(hook_point.path)
        return layer is not None and not {"resid_mid", "mlp_out"}.isdisjoint(self.places(layer))


def is_called(module: nn.Module | None) -> bool:
    """Whether a module can have an input and an output; lists of modules are only looked into."""
    return module is not None and not isinstance(module, nn.ModuleList | nn.ModuleDict)


def _find_blocks(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """The shallowest list of blocks: in the model's decoder, else anywhere in it.

    Where several lie equally deep it is the one that is as long as the config says.
    """
    counts = [count for name in _COUNTS if isinstance(count := getattr(config, name, None), int)]
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and module]
    declared = [(path, module) for path, module in lists if _are_blocks(model, module)]
    # Older code does not say what its blocks are: any list that is as long as the config says may be theirs.
    known = declared or [
        (path, module) for path, module in lists if len(module) in counts and any(module[0].children())
    ]
    prefix = _decoder_path(model)
    candidates = [(path, module) for path, module in known if path.startswith(f"{prefix}.")] or known
    depth = min((path.count(".") for path, _ in candidates), default=0)
    shallowest = [(path, module) for path, module in candidates if path.count(".") == depth]
    fitting = [(path, module) for path, module in shallowest if len(module) in counts[:1]]
    found = shallowest if len(shallowest) == 1 else fitting
    if len(found) != 1:
        raise HookPointError(_ambiguous(model, counts, shallowest or lists))
    path, blocks = found[0]
    _check_that_tokens_pass(blocks[0], config)
    return path, blocks


def _decoder_path(model: nn.Module) -> str:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # pyright: ignore[reportCallIssue]
    return next((path for path, module in model.named_modules() if module is decoder), "")


def _are_blocks(model: nn.Module, modules: nn.ModuleList) -> bool:
    """Whether every entry is what the model's own code treats as a block."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return all(isinstance(module, GradientCheckpointingLayer) or type(module).__name__ in names for module in modules)


def _check_that_tokens_pass(block: nn.Module, config: Any) -> None:
    """Refuses blocks that take more than one vector a token, without an axis that tells them apart."""
    name = type(block).__name__
    # nnsight gives every module a forward that seems unbound.
    parameters = [name for name in inspect.signature(block.forward).parameters if name != "self"]
    if "hidden_states" in parameters[1:]:  # Reformer
        why = f"{name} takes {parameters[0]!r} beside 'hidden_states'"
    elif getattr(config, "ngram", 0):  # ProphetNet
        why = f"{name} takes the streams that predict n-grams behind the tokens' own"
    else:
        return
    raise HookPointError(
        f"{why}: more than one stream goes from block to block, and no portable name says which. Name the place by "
        f"its module path and side instead"
    )


def _ambiguous(model: nn.Module, counts: list[int], lists: list[tuple[str, nn.ModuleList]]) -> str:
    said = f"its config says {counts[0]} layers" if counts else "its config counts no layers"
    found = ", ".join(f"{path} ({len(modules)})" for path, modules in lists) or "none"
    example = f"{lists[0][0]}.0.output" if lists else "decoder.3.output"
    return (
        f"cannot tell the decoder layers of {type(model).__name__}: {said}, and the lists of modules that may be them "
        f"are: {found}. Name the place by its module path and side instead, such as '{example}'"
    )


def _without_config(model: nn.Module) -> str:
    name = type(model).__name__
    try:
        inside = inner_model(model)
    except (TypeError, ValueError):
        return (
            f"{name} carries no transformers config, so its layers cannot be told; name the place by its module path "
            f"and side, such as 'layers.3.output'"
        )
    return f"{name} is a wrapper: pass the {type(inside).__name__} inside, which hfsae.hooks.inner_model finds"
