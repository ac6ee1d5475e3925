"""Names a place in any Hugging Face causal LM, reads there and writes there.

    with capture(model, "resid_post.8") as activations:
        x = activations.run(input_ids=input_ids)["resid_post.8"]

    with splice(model, "resid_post.8", lambda x: sae(x).reconstruction):
        loss = model(input_ids=input_ids, labels=input_ids).loss

Places have portable names (`resid_post.8`), TransformerLens names (`blocks.8.hook_resid_post`) and canonical names
(`transformer.h.8.output`). Every reading and writing is a context manager; leaving it takes all hooks off the model.
"""

from hfsae.hooks.capture import Capture, capture
from hfsae.hooks.inner import inner_model
from hfsae.hooks.names import (
    available_hook_points,
    portable_name,
    resolve_hook_point,
    resolve_hook_points,
    transformer_lens_name,
)
from hfsae.hooks.points import HookPoint, HookPointError
from hfsae.hooks.side_by_side import SideBySide
from hfsae.hooks.splice import add_vector, splice
from hfsae.hooks.width import width

__all__ = [
    "Capture",
    "HookPoint",
    "HookPointError",
    "SideBySide",
    "add_vector",
    "available_hook_points",
    "capture",
    "inner_model",
    "portable_name",
    "resolve_hook_point",
    "resolve_hook_points",
    "splice",
    "transformer_lens_name",
    "width",
]
