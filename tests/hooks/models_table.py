"""Writes the table of `docs/models.md`: what every type that `AutoModelForCausalLM` knows offers by portable name.

python -m tests.hooks.models_table
"""

from pathlib import Path

import torch
import transformers

from hfsae.hooks import HookPointError
from hfsae.hooks.layout import LAYER_ROLES, DecoderLayout
from tests.hooks.model_types import MODEL_TYPES, model_class, tiny_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

COLUMNS = [role for role in LAYER_ROLES if role != "resid_pre"]  # which is where resid_post is

REMARKS = {
    "blt": "patches of bytes; four stacks of blocks",
    "cpmant": "puts a prompt of its own in front; can be read, not spliced",
    "gemma3n": "its vision tower needs timm: see `gemma3n_text`",
    "gemma4_assistant": "drafts for another model, whose states it needs",
    "gemma4_unified_assistant": "drafts for another model, whose states it needs",
    "dory": "blocks that run several times: `resid_post.1@0`",
    "hrm_text": "two stacks that run several times: `model.H_module.layers.1.output@0`",
    "mllama": "layers with cross-attention are passed with images only",
    "musicgen": "a row of ids for each codebook; can be read, not spliced",
    "musicgen_melody": "a row of ids for each codebook; can be read, not spliced",
    "nanochat": "`final_norm` is `model.norm.output@1`: the same norm comes first too",
    "prophetnet": "streams of predicted n-grams behind the tokens' own",
    "reformer": "two streams without an axis that tells them apart",
    "xlm": "no blocks: lists of attentions and of MLPs",
    "xlnet": "passes (seq, batch, d), which is turned",
}


def table() -> str:
    """The table, with the release that it was made with."""
    head = ["model type", "blocks", *(f"`{role}`" for role in COLUMNS), "`final_norm`", "remarks"]
    lines = [f"With transformers {transformers.__version__}:", "", row(head), row(["---"] * len(head))]
    return "\n".join([*lines, *(row(entry(model_type)) for model_type in sorted(MODEL_TYPES))])


def entry(model_type: str) -> list[str]:
    """One type's cells: where its blocks are, which layers offer what, and what is unusual."""
    remark = REMARKS.get(model_type, "")
    try:
        with torch.device("meta"):
            model = model_class(model_type)(tiny_config(model_type))
        layout = DecoderLayout(model)
    except (HookPointError, ImportError, ValueError):
        return [f"`{model_type}`", *[""] * (len(COLUMNS) + 2), remark]
    layers = len(layout.blocks)
    counts = [sum(role in layout.places(layer) for layer in range(layers)) for role in COLUMNS]
    cells = ["yes" if count == layers else "some" if count else "" for count in counts]
    cells.append("yes" if layout.final_norm else "")
    return [
        f"`{model_type}`",
        f"`{layout.layers_path}`",
        *cells,
        "; ".join(filter(None, [remark, streams(layout), ending(layout)])),
    ]


def streams(layout: DecoderLayout) -> str:
    return f"{layout.streams.number} streams: `resid_post.3[0]` names one" if layout.streams else ""


def ending(layout: DecoderLayout) -> str:
    """What a block does after its branches have been added."""
    added = [f" + {name}" for name in layout.after_the_branches(0) if name != "layer_scalar"]
    scaled = "layer_scalar" in layout.after_the_branches(0)
    return f"`resid_post` = (`resid_mid` + `mlp_out`{''.join(added)}) · layer_scalar" if scaled else ""


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def written() -> str:
    """The table as the document has it."""
    return DOCUMENT.read_text().partition(f"{BEGIN}\n")[2].partition(f"\n{END}")[0]


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text().partition(f"{BEGIN}\n")
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
