"""The number of active features that was asked for is reached within a tenth from 100 steps on.

On activations of the real language model of the repository; those of a random one say nothing of how L0 answers to λ.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.data import TokenBlocks, load_text
from hfsae.data.activation_sources import LMActivations
from tests.evaluation.surgery import TINY_LM, tiny_lm

STEPS, BATCH = 100, 512
KINDS = {
    "autoencoder": {"hook_point": "resid_post.1"},
    "transcoder": {"hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1"},
    "crosscoder": {"hook_point": "resid_post.1+mlp_out.1"},
}
CASES = [
    *(("autoencoder", rule) for rule in ("standard", "gated", "jumprelu")),
    *(pytest.param("transcoder", rule, marks=pytest.mark.slow) for rule in ("standard", "gated", "jumprelu")),
    *(pytest.param("crosscoder", f"{rule}_crosscoder", marks=pytest.mark.slow) for rule in ("standard", "jumprelu")),
]


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    """Activations of the first documents of the standard library, in the order of the text's own shuffling."""
    text = load_text("python-stdlib").select(range(160))
    assert isinstance(text, Dataset)
    blocks = TokenBlocks(
        text, AutoTokenizer.from_pretrained(TINY_LM), context_length=128, batch_size=32, exclude_positions=[0]
    )
    model = tiny_lm().eval()
    names = {"resid_post.1": "transformer.h.1.output", "mlp_in.1": "transformer.h.1.mlp.input"}
    names["mlp_out.1"] = "transformer.h.1.mlp.output"
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    have = 0
    for batch in LMActivations(model, blocks, list(names.values())):
        for name, place in names.items():
            found[name].append(batch[place])
        have += len(batch[names["resid_post.1"]])
        if have > (STEPS + 8) * BATCH:
            break
    order = torch.randperm(have, generator=torch.Generator().manual_seed(0))
    return {name: torch.cat(parts)[order] for name, parts in found.items()}


def trained(folder: Path, rows: dict[str, Tensor], kind: str, rule: str, steps: int, **options: object) -> SAE:
    args = {
        "output_dir": str(folder),
        "architecture": rule,
        "training_tokens": steps * BATCH,
        "train_batch_tokens": BATCH,
        "expansion_factor": 4,
        "target_l0": 16,
        "eval_tokens": 0,
        "init_tokens": 4096,
        "disable_tqdm": True,
        "html_report": False,
        "use_cpu": True,
        **KINDS[kind],
        **options,
    }
    places = "+".join(KINDS[kind].values()).split("+")
    inputs = {place: rows[place] for place in places}
    return SAETrainer(args=SAETrainingArguments(**args), activations=inputs).train().sae


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_the_target_is_reached_within_a_tenth(tmp_path, caplog, rows, kind, rule):
    sae = trained(tmp_path, rows, kind, rule, STEPS)
    with torch.no_grad():
        names = KINDS[kind]["hook_point"].split("+")
        held_out = torch.cat([rows[name][-4 * BATCH :].float() for name in names], 1)
        l0 = sae.encode_sparse(held_out).tokens_firing().sum().item() / len(held_out)
    became = sae.config.training["final_l0"]
    assert l0 == pytest.approx(16, rel=0.1) and became == pytest.approx(16, rel=0.1)
    assert ("was asked for" in caplog.text) is (abs(became / 16 - 1) > 0.1)


def test_a_run_too_short_for_it_says_so(tmp_path, caplog, rows):
    sae = trained(tmp_path, rows, "autoencoder", "jumprelu", 8)
    became = sae.config.training["final_l0"]
    assert became > 20 and f"L0 is {became:.3g}, but 16 was asked for: 8 steps were too few" in caplog.text
    assert "51,200 tokens (100 steps)" in caplog.text
    card = (tmp_path / "README.md").read_text()
    assert f"l0\\_{became:.3g}" in card and f"| L0 at the end, smoothed | {became:.4g} |" in card


@pytest.mark.slow
def test_the_target_is_kept_while_the_learning_rate_falls(tmp_path, rows):
    """Features of `standard` come back with its noise gone; L0 answers little to λ then."""
    again = {name: part.repeat(4, 1) for name, part in rows.items()}
    sae = trained(tmp_path, again, "autoencoder", "standard", 400, expansion_factor=8, target_l0=32)
    assert sae.config.training["final_l0"] == pytest.approx(32, rel=0.05)
