"""Runs SAEBench's core on an `SAEBenchView`; hfsae comes from the path, installed without its dependencies.

    python saebench.py SAE LANGUAGE_MODEL TEXT_FOLDER OUT

Writes OUT/metrics.json, and the tokens of both of its passes to OUT/tokens.safetensors.
"""

import json
import sys
from pathlib import Path

import sae_bench.evals.core.main as core
import torch
from lens import lens_model
from safetensors.torch import save_file

from hfsae import SAE
from hfsae.interop import SAEBenchView

BATCHES, ROWS = 6, 16


def main(sae: str, model: str, text: str, out: str) -> None:
    """Evaluates, with the language model that is given in place of one from the Hub."""
    core.HookedTransformer.from_pretrained_no_processing = lambda *args, **kwargs: lens_model(model)
    seen: list[torch.Tensor] = []
    original = core.ActivationsStore.get_batch_tokens

    def remember(store, *args, **kwargs):
        tokens = original(store, *args, **kwargs)
        seen.append(tokens.cpu().clone())
        return tokens

    core.ActivationsStore.get_batch_tokens = remember
    view = SAEBenchView(SAE.from_pretrained(sae))
    options = {"compute_featurewise_density_statistics": True, "compute_featurewise_weight_based_metrics": True}
    results = core.multiple_evals(
        [("hfsae", view)],
        n_eval_reconstruction_batches=BATCHES,
        n_eval_sparsity_variance_batches=BATCHES,
        eval_batch_size_prompts=ROWS,
        exclude_special_tokens_from_reconstruction=True,
        dataset=text,
        context_size=128,
        output_folder=str(Path(out) / "results"),
        device="cpu",
        force_rerun=True,
        **options,
    )
    assert len(results) == 1, "SAEBench gave no result"
    (Path(out) / "metrics.json").write_text(json.dumps(results[0]["metrics"], default=float))
    passes = {"reconstruction": seen[:BATCHES], "sparsity": seen[BATCHES : 2 * BATCHES]}
    save_file(
        {name: torch.cat(tokens).contiguous() for name, tokens in passes.items()}, Path(out) / "tokens.safetensors"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
