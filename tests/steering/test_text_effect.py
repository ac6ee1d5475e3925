"""What a change does to a text, against one token at a time in plain Python."""

import math
from contextlib import nullcontext

import pytest
import torch

from hfsae.data import TokenBatch
from hfsae.hooks import splice
from hfsae.hooks.splice import add_vector
from hfsae.steering import text_effects
from tests.analysis.tiny import setting, texts
from tests.models_on_disk import bert

PLACE = "transformer.h.1.output"


def batches() -> list[TokenBatch]:
    """Two batches; the last row of each is padded, and position 0 does not count."""
    ids = torch.randint(1, 12, (5, 9), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[-1, 6:] = 0
    keep = mask.bool()
    keep[:, 0] = False
    whole = TokenBatch(ids, mask, keep)
    return [TokenBatch(*(part[:3] for part in whole)), TokenBatch(*(part[3:] for part in whole))]


def change():
    return splice(setting().model, PLACE, add_vector(torch.linspace(-3, 3, 16)))


@torch.no_grad()
def longhand():
    """Sums over predictions, one at a time."""
    model = setting().model
    n = kl = moved = loss = changed_loss = 0.0
    before_sum, after_sum = None, None
    for batch in batches():
        for row in range(len(batch.input_ids)):
            length = int(batch.attention_mask[row].sum())
            ids = batch.input_ids[row : row + 1, :length]
            before = model(ids).logits[0].double().softmax(-1)
            with change():
                after = model(ids).logits[0].double().softmax(-1)
            for position in range(1, length - 1):
                p, q, right = before[position], after[position], int(ids[0, position + 1])
                kl += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
                moved += int(p.argmax() != q.argmax())
                loss -= math.log(float(p[right]))
                changed_loss -= math.log(float(q[right]))
                before_sum = p if before_sum is None else before_sum + p
                after_sum = q if after_sum is None else after_sum + q
                n += 1
    assert before_sum is not None and after_sum is not None
    return n, kl / n, moved / n, loss / n, changed_loss / n, before_sum / n, after_sum / n


def test_every_figure_is_that_of_a_plain_loop():
    sae, model, _ = setting()
    effect = text_effects(model, sae, batches(), {"a": change})["a"]
    n, kl, moved, loss, changed_loss, before, after = longhand()
    assert effect.n_predictions == n == 4 * 7 + 4
    assert effect.kl == pytest.approx(kl, rel=1e-5) and effect.top_changed == pytest.approx(moved)
    assert effect.loss == pytest.approx(loss, rel=1e-6) and effect.changed_loss == pytest.approx(
        changed_loss, rel=1e-6
    )
    assert effect.perplexity == pytest.approx(math.exp(loss), rel=1e-6)
    torch.testing.assert_close(effect.probabilities, before, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(effect.changed_probabilities, after, rtol=1e-5, atol=1e-9)
    shift = after - before
    assert effect.most_moved(3, raised=True) == shift.argsort(descending=True)[:3].tolist()
    assert effect.most_moved(3, raised=False) == shift.argsort()[:3].tolist()
    with pytest.raises(ValueError, match="k is -1: expected 0 tokens or more"):
        effect.most_moved(-1, raised=True)
    assert effect.of_tokens([2, 5]) == pytest.approx((float(before[[2, 5]].sum()), float(after[[2, 5]].sum())))


def test_what_changes_nothing_has_no_effect():
    sae, model, _ = setting()
    effects = text_effects(model, sae, batches(), {"same": nullcontext, "other": change}, reference=nullcontext)
    same = effects["same"]
    assert (same.kl, same.top_changed, same.loss) == (0.0, 0.0, same.changed_loss)
    assert not same.most_moved(3, raised=True) and effects["other"].kl > 0


def test_tokens_that_the_model_rules_out_leave_the_divergence_a_number():
    sae, model, _ = setting()
    found = []
    for lowest in (-torch.inf, -1e5):
        handle = model.lm_head.register_forward_hook(
            lambda *given, lowest=lowest: given[2].index_fill(-1, torch.tensor([20, 30]), lowest)
        )
        try:
            found.append(text_effects(model, sae, batches(), {"a": change})["a"].kl)
        finally:
            handle.remove()
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0] > 0


def test_texts_are_cut_as_the_sae_wants_them():
    sae, model, tokenizer = setting()
    effects = text_effects(model, sae, texts(), {"a": change}, tokenizer=tokenizer, max_tokens=100)
    assert 50 < effects["a"].n_predictions <= 100


def test_a_model_that_sees_both_sides_is_refused():
    with pytest.raises(ValueError, match="predicts no next token"):
        text_effects(bert(), setting().sae, batches(), {"a": nullcontext})
