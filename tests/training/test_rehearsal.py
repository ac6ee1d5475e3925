"""The evaluation is tried before the first step; where it cannot be done, nothing is trained."""

import pytest
import torch

from hfsae import SAE, BatchTopKSAEConfig, JumpReLUSAEConfig
from hfsae.training.checkpoint import last_checkpoint
from tests.data.tiny import language_model
from tests.hooks.witness import count_hooks
from tests.training.tiny import stop_at, text, trainer


def test_a_model_that_cannot_be_measured_in_is_refused_before_the_first_step(tmp_path):
    def too_many(_module, args):
        if args[0].shape[1] > 4:
            raise torch.OutOfMemoryError("no room for logits")

    model = language_model()
    handle = model.lm_head.register_forward_pre_hook(too_many)  # what is trained on does not pass it
    message = "was tried on one batch, and it failed: OutOfMemoryError: no room for logits.* eval_tokens=0"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, eval_tokens=100, inputs={"model": model}).train()
    assert last_checkpoint(tmp_path) is None and count_hooks(model) == 1
    handle.remove()
    assert trainer(tmp_path, inputs={"model": model}, callbacks=[stop_at(1)]).train().steps == 1


def test_text_to_measure_on_that_holds_nothing_is_told_before_the_first_step(tmp_path):
    empty = text().select(range(3)).map(lambda _: {"text": "<eos>"})
    with pytest.raises(ValueError, match="the text holds no token that counts"):
        trainer(tmp_path, eval_tokens=100, inputs={"eval_dataset": empty}).train()
    assert last_checkpoint(tmp_path) is None


def test_training_goes_its_way_as_if_nothing_had_been_tried(tmp_path):
    """Bit for bit, whether SAEs come as configs or as objects, whose mode stays theirs."""
    ends = {}
    for tokens in (0, 100):
        torch.manual_seed(0)
        mine = SAE.from_config(JumpReLUSAEConfig(d_in=16, n_features=48)).eval()
        saes = {"mine": mine, "fresh": BatchTopKSAEConfig(d_in=16, n_features=48, k=4)}
        inputs = {"model": language_model(), "saes": saes}
        ends[tokens] = trainer(tmp_path / str(tokens), eval_tokens=tokens, inputs=inputs, callbacks=[stop_at(5)])
    with_it, without = (ends[tokens].train().saes for tokens in (100, 0))
    for name, sae in with_it.items():
        other = without[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in sae.state_dict().items())
