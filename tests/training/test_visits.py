"""A looped model: training, evaluation, card and use mean the visit that the hook point names."""

import pytest
import torch
from torch import Tensor

from hfsae import SAE
from hfsae.data import TokenBlocks
from hfsae.evaluation import evaluate_sae
from hfsae.hooks import HookPointError
from tests.data.tiny import pythia_like
from tests.hooks.model_types import tiny_model
from tests.training.tiny import text, trainer

LOOPED = "model.L_module.layers.1.output"


def inputs() -> dict:
    return {"model": tiny_model("hrm_text"), "train_dataset": text(), "processing_class": pythia_like()}


def test_a_run_without_a_visit_is_refused_before_it_reads_text(tmp_path):
    with pytest.raises(HookPointError, match=r"6 times in one forward pass.*'model.L_module.layers.1.output@0'"):
        trainer(tmp_path, inputs=inputs(), hook_point=LOOPED).train()


def test_the_visit_that_is_trained_is_the_one_that_is_measured_recorded_and_attached(tmp_path):
    place, model = f"{LOOPED}@5", inputs()["model"]
    trainer(tmp_path, inputs=inputs(), hook_point=place, eval_tokens=300, steps=40).train()
    sae = SAE.from_pretrained(tmp_path)
    assert sae.config.hook_point == place and place in (tmp_path / "README.md").read_text()
    blocks = TokenBlocks(text(), pythia_like(), context_length=12, batch_size=4)
    batch = next(iter(blocks))
    visits: list[Tensor] = []
    with torch.no_grad(), sae.attach(model) as run:
        handle = model.get_submodule("model.L_module.layers.1").register_forward_hook(
            lambda *call: visits.append(call[2].clone())
        )
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        handle.remove()
    assert len(visits) == 6 and torch.equal(run.activations, visits[5])
    blocks = TokenBlocks(text(), pythia_like(), context_length=12, batch_size=4)
    rows = visits[5].flatten(0, 1)  # else the first sequences would be taken for calibration
    measured = evaluate_sae(sae, model, blocks, max_tokens=int(batch.keep.sum()), calibration=rows)
    whole = batch.keep.sum(1).cumsum(0) <= measured["n_tokens"]  # sequences are measured whole
    keep = batch.keep & whole[:, None]
    assert measured["n_tokens"] == keep.sum()

    @torch.no_grad()
    def mse(visit: int) -> float:
        x = visits[visit][keep]
        return float((x - sae(x).reconstruction).double().square().sum(-1).mean())

    assert measured["mse"] == pytest.approx(mse(5), rel=1e-4)
    assert mse(0) != pytest.approx(mse(5), rel=1e-2)
