"""A cross-layer transcoder that stands in a model, against plain hooks on the MLPs and the formula by hand."""

import copy
import re
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae import SAE, TopKCrossLayerTranscoderSAEConfig, attach_all, evaluate_together
from hfsae.evaluation import evaluate_sae, weights_sha256
from tests.evaluation.test_together import CALIBRATION, LAYERS, mlps_return
from tests.evaluation.tiny import WIDTH, batches, language_model, tokens_of

N = 40
NAMES = [f"mlp_in.{layer}" for layer in LAYERS]


def transcoder(**options) -> SAE:
    torch.manual_seed(0)
    places = {"hook_point": "+".join(NAMES), "target_hook_point": "+".join(f"mlp_out.{layer}" for layer in LAYERS)}
    sizes = {"source_names": NAMES, "source_widths": [WIDTH] * 3, "n_features": 3 * N, "k": 4}
    sae = SAE.from_config(TopKCrossLayerTranscoderSAEConfig(**sizes, **places, **options)).eval()
    with torch.no_grad():
        sae.output_scale.copy_(torch.tensor([0.4, 0.5, 0.6]))
        sae.b_dec.normal_()
        if sae.config.skip:
            sae.W_skip.normal_(std=0.3)
        for scale in getattr(sae, "decoder_scale", []):
            scale.normal_()
    return sae


FORMS = pytest.mark.parametrize("options", [{}, {"tied_decoder": True}, {"skip": True}], ids=["free", "tied", "skip"])


class ByHand:
    """What the MLPs are to return, each from the features that were read in this pass before it."""

    def __init__(self, sae: SAE, edit: tuple[int, int, float] | None = None):
        self.sae, self.edit, self.features = sae, edit, {}

    def __call__(self, layer: int, x: Tensor, _=None) -> Tensor:
        sae = self.sae
        dense = sae.encode({NAMES[layer]: x})[..., layer * N : (layer + 1) * N]
        if self.edit is not None and self.edit[0] == layer:
            dense = dense.clone()
            dense[..., self.edit[1]] = self.edit[2]
        self.features[layer] = dense
        made = sae.b_dec[layer * WIDTH : (layer + 1) * WIDTH]
        for source in range(layer + 1):
            rows = sae.rows_of_layer(source)[:, (layer - source) * WIDTH : (layer - source + 1) * WIDTH]
            made = made + self.features[source] @ rows
        if sae.config.skip:
            made = made + x * sae.input_scale[layer] @ sae.W_skip[layer].T
        return made / sae.output_scale[layer]


@FORMS
@torch.no_grad()
def test_spliced_in_at_every_layer_the_logits_are_those_of_hooks_by_hand(options: dict):
    sae, model, batch = transcoder(**options), language_model(), batches()[0]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    keep = batch.keep
    with mlps_return(ByHand(sae), keep):
        expected = model(**inputs).logits
    with attach_all(model, sae.by_layer(), splice=True) as runs:
        found = [model(**inputs).logits for _ in range(2)]  # nothing is left over from the pass before
    for logits in found:
        torch.testing.assert_close(logits[keep], expected[keep])
    assert not torch.allclose(expected[keep], model(**inputs).logits[keep], atol=0.1)
    assert list(runs) == NAMES and runs["mlp_in.1"].features.shape == (*keep.shape, N)
    with attach_all(model, sae.by_layer(), splice=True, keep_error=True):
        torch.testing.assert_close(model(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_a_feature_that_is_edited_writes_at_later_layers_too():
    sae, model, batch = transcoder(), language_model(), batches()[0]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    def strong(features):
        dense = features.to_dense()
        dense[..., 7] = 5.0
        return dense

    with mlps_return(ByHand(sae, edit=(0, 7, 5.0)), batch.keep):
        expected = model(**inputs).logits
    with attach_all(model, sae.by_layer(), splice=True, edits={"mlp_in.0": strong}):
        torch.testing.assert_close(model(**inputs).logits[batch.keep], expected[batch.keep])
    first_alone = ByHand(sae, edit=(0, 7, 5.0))

    def own_layer_alone(layer: int, x: Tensor, y: Tensor) -> Tensor:
        made = first_alone(layer, x)
        if layer == 0:
            first_alone.features[0] = sae.encode({NAMES[0]: x})[..., :N]
        return made

    with mlps_return(own_layer_alone, batch.keep):
        assert not torch.allclose(model(**inputs).logits[batch.keep], expected[batch.keep], atol=1e-3)


@FORMS
@torch.no_grad()
def test_the_figures_of_all_layers_together_are_those_by_hand(options: dict):
    sae, model, data = transcoder(**options), language_model(), batches()
    figures = evaluate_together({"": sae}, model, data, calibration=CALIBRATION, disable_tqdm=True)
    nats, active, predictions = 0.0, 0, 0
    for batch in data:
        by_hand = ByHand(sae)
        with mlps_return(by_hand, batch.keep):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        asked = batch.keep[:, :-1] & batch.attention_mask[:, 1:].bool()
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
        nats, predictions = nats + losses[asked].sum().item(), predictions + int(asked.sum())
        active += sum(int((dense[batch.keep] != 0).sum()) for dense in by_hand.features.values())
    assert figures["ce_spliced"] == pytest.approx(nats / predictions, rel=1e-5)
    assert figures["l0"] == pytest.approx(active / tokens_of(data), rel=1e-6)
    assert figures["ce_with_errors"] == pytest.approx(figures["ce_clean"], rel=1e-5)
    assert figures["with_errors_difference"] < 1e-5 and figures["n_saes"] == 1
    assert figures["protocol"]["weights_sha256"] == {"": weights_sha256(sae)}


@torch.no_grad()
def test_every_layer_has_figures_of_its_own_from_what_the_model_itself_reads():
    sae, model, data = transcoder(), language_model(), batches()
    for layer, few in enumerate((5, 10, 20)):  # never fire
        sae.encoder.bias[layer * N : layer * N + few] = -100.0
    metrics = evaluate_sae(sae, model, data, calibration=CALIBRATION, disable_tqdm=True)
    assert list(metrics["sources"]) == NAMES
    errors, spread, fired = [0.0] * 3, [[] for _ in LAYERS], torch.zeros(3, N, dtype=torch.bool)
    active = [0, 0, 0]
    for batch in data:
        by_hand = ByHand(sae)

        def noted(layer: int, x: Tensor, y: Tensor, by_hand=by_hand, batch=batch) -> Tensor:
            errors[layer] += (y - by_hand(layer, x))[batch.keep].double().square().sum().item()
            spread[layer].append(y[batch.keep].double())
            fired[layer] |= (by_hand.features[layer][batch.keep] != 0).any(0)
            active[layer] += int((by_hand.features[layer][batch.keep] != 0).sum())
            return y

        with mlps_return(noted, batch.keep):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for layer in LAYERS:
        rows = torch.cat(spread[layer])
        expected = 1 - errors[layer] / (rows - rows.mean(0)).square().sum().item()
        found = metrics["sources"][NAMES[layer]]
        assert found["explained_variance"] == pytest.approx(expected, rel=1e-5)
        assert found["loss_recovered"] is not None
        assert found["l0"] == pytest.approx(active[layer] / len(rows), rel=1e-6)
        assert found["dead_fraction"] == pytest.approx((~fired[layer]).float().mean().item())
    assert metrics["l0"] == pytest.approx(sum(active) / len(rows), rel=1e-6)
    dead = [metrics["sources"][name]["dead_fraction"] for name in NAMES]
    assert dead[0] < dead[1] < dead[2] and metrics["dead_fraction"] == pytest.approx(sum(dead) / 3)


@torch.no_grad()
def test_threads_that_share_the_steps_do_not_mix_their_passes():
    sae, batch = transcoder(), batches()[0]
    steps, others = sae.by_layer(), torch.roll(batch.input_ids, 1, 0)
    model, other = language_model(), copy.deepcopy(language_model())
    with attach_all(model, steps, splice=True):
        expected = model(batch.input_ids, attention_mask=batch.attention_mask).logits
    alone: list[Tensor] = []

    def another_thread(*_) -> None:
        with torch.no_grad(), attach_all(other, steps, splice=True):
            alone.append(other(others, attention_mask=batch.attention_mask).logits)

    def run_another(*_) -> None:
        thread = Thread(target=another_thread)
        thread.start()
        thread.join()

    with attach_all(model, steps, splice=True):
        handle = model.transformer.h[1].register_forward_pre_hook(run_another)  # in the middle of the pass
        found = model(batch.input_ids, attention_mask=batch.attention_mask).logits
        handle.remove()
    assert len(alone) == 1 and not torch.equal(alone[0], expected)
    assert torch.equal(found, expected)


def test_what_cannot_stand_says_what_can():
    sae = transcoder()
    message = re.escape("attach_all(model, sae.by_layer())")
    with pytest.raises(ValueError, match=message), sae.attach(language_model()):
        pass
    steps = sae.by_layer()
    with pytest.raises(ValueError, match="depends on mlp_in.0, mlp_in.1, where this pass has read nothing"):
        steps["mlp_in.2"](torch.randn(2, WIDTH))
