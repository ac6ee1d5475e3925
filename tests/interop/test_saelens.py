"""SAELens: training checkpoints, and what it says of the text that an SAE was trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hfsae import SAE, export_sae
from tests.interop.foreign import D, K, N, jump, matrices, random, saelens, write_json, write_tensors

X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(3)) + 0.5


# -- training checkpoints ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
def test_checkpoints_of_training_are_what_they_are(architecture: str, rescale: bool, tmp_path: Path):
    """Features are those that SAELens saves for inference: a JumpReLU at the threshold of the checkpoint."""
    w = {**matrices(), "topk_threshold": torch.tensor(0.4, dtype=torch.double)}
    extra: dict[str, Any] = {"k": 2.5, "rescale_acts_by_decoder_norm": rescale, "topk_threshold_lr": 0.01}
    if architecture.startswith("matryoshka"):
        extra |= {"matryoshka_widths": [4, 12, N], "use_matryoshka_aux_loss": False}
    saelens(tmp_path, architecture, extra, w)
    sae = SAE.from_pretrained(tmp_path)
    norm = w["W_dec"].norm(dim=1) if rescale else torch.ones(N)
    features = jump(((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm, 0.4)
    assert 0 < (features != 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X).reconstruction, features / norm @ w["W_dec"] + w["b_dec"], rtol=0, atol=1e-5)
    assert type(sae).__name__ == ("BatchTopKSAE" if architecture == "batchtopk" else "MatryoshkaSAE")
    assert sae.config.k == 2 and sae.threshold.dtype == torch.float32
    if architecture != "batchtopk":
        assert sae.config.prefix_sizes == [4, 12, N]


# -- the text ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kept, left_out", [([5, None], [0, 1, 2, 3, 4]), ([None], []), ([None, 60], [60, 61, 62, 63]), ([1, -1], [0, 63])]
)
def test_positions_that_were_left_out_stay_so_both_ways(kept: list, left_out: list[int], tmp_path: Path):
    saelens(tmp_path / "theirs", "standard", {"metadata": {"seqpos_slice": kept}}, matrices())
    sae = SAE.from_pretrained(tmp_path / "theirs")
    assert sae.config.exclude_positions == left_out
    again = SAE.from_pretrained(export_sae(sae, tmp_path / "back", "saelens"))
    assert again.config.exclude_positions == left_out


def test_positions_that_are_no_slice_are_refused_before_anything_is_written(tmp_path: Path):
    saelens(tmp_path / "theirs", "standard", {}, matrices())
    sae = SAE.from_pretrained(tmp_path / "theirs", exclude_positions=[0, 3, 4])
    with pytest.raises(ValueError, match=r"exclude_positions=\[0, 3, 4\] of 64 is none"):
        export_sae(sae, tmp_path / "back", "saelens")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "policy, expected",
    [
        (
            {"exclude_special_tokens": True, "prepend_bos": False},
            {"exclude_special_tokens": True, "prepend_bos": False},
        ),
        ({"exclude_special_tokens": [50256, 3]}, {"exclude_special_tokens": True, "prepend_bos": True}),
        ({"exclude_special_tokens": []}, {"exclude_special_tokens": False}),
        ({"exclude_special_tokens": False, "prepend_bos": None}, {"prepend_bos": None}),
        ({"sequence_separator_token": "eos", "disable_concat_sequences": True}, {}),
        ({"model_class_name": "AutoModelForCausalLM", "model_from_pretrained_kwargs": {"center_unembed": False}}, {}),
    ],
    ids=str,
)
def test_policies_of_the_text_are_kept_both_ways(policy: dict, expected: dict, tmp_path: Path):
    import json

    saelens(tmp_path / "theirs", "standard", {"metadata": policy}, matrices())
    sae = SAE.from_pretrained(tmp_path / "theirs")
    assert {name: getattr(sae.config, name) for name in expected} == expected
    sae.save_pretrained(tmp_path / "ours")
    written = export_sae(SAE.from_pretrained(tmp_path / "ours"), tmp_path / "back", "saelens")
    metadata = json.loads((written / "cfg.json").read_text())["metadata"]
    said = {key: value or None for key, value in policy.items() if value is not None}
    assert {key: metadata.get(key) or None for key in said} == {key: value or None for key, value in said.items()}


def test_a_policy_that_was_changed_here_is_written_as_it_is_now(tmp_path: Path):
    import json

    saelens(tmp_path / "theirs", "standard", {"metadata": {"exclude_special_tokens": [50256]}}, matrices())
    sae = SAE.from_pretrained(tmp_path / "theirs", exclude_special_tokens=False)
    metadata = json.loads((export_sae(sae, tmp_path / "back", "saelens") / "cfg.json").read_text())["metadata"]
    assert metadata["exclude_special_tokens"] is False


def test_a_factor_that_the_config_denies_is_refused(tmp_path: Path):
    w = {**matrices(), "scaling_factor": 1 + random(N, seed=10).abs()}
    config = {"hook_name": "blocks.2.hook_resid_pre", "d_in": D, "d_sae": N, "finetuning_scaling_factor": False}
    write_json(tmp_path / "cfg.json", config)
    write_tensors(tmp_path / "sae_weights.safetensors", w)
    with pytest.raises(ValueError, match="finetuning_scaling_factor is false"):
        SAE.from_pretrained(tmp_path)
    write_tensors(tmp_path / "sae_weights.safetensors", {**w, "scaling_factor": torch.ones(N)})
    assert torch.equal(SAE.from_pretrained(tmp_path).W_dec, load_file(tmp_path / "sae_weights.safetensors")["W_dec"])
    assert K < N
