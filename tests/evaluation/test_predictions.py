"""What a language model predicts, and masked models measured against passes written out by hand."""

import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    EsmConfig,
    EsmForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from hfsae import SAE, TopKSAEConfig, evaluate_sae
from hfsae.data import TokenBatch
from hfsae.evaluation.predictions import predictions_of
from hfsae.evaluation.report import report
from hfsae.hub.card import render_card
from tests.evaluation import longhand
from tests.evaluation.tiny import batches, language_model

SIZES = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MASK = 4
MASKED = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=12, initializer_range=0.5)),
    "roberta": lambda: RobertaForMaskedLM(
        RobertaConfig(**SIZES, max_position_embeddings=14, initializer_range=0.5, pad_token_id=1)
    ),
    "esm": lambda: EsmForMaskedLM(
        EsmConfig(**SIZES, max_position_embeddings=14, pad_token_id=1, mask_token_id=MASK, initializer_range=0.5)
    ),
}


class Tokenizer:
    """What an evaluation asks of a tokenizer where the text is tokenised already."""

    mask_token_id = MASK


def masked_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return MASKED[family]().eval()


def text(rows: int = 20, length: int = 12) -> TokenBatch:
    """Position 0 and padding do not count; the last sequence is padded from its middle on."""
    ids = torch.randint(5, 48, (rows, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    ids[-1, length // 2 :], mask[-1, length // 2 :] = 1, 0
    keep = mask.bool()
    keep[:, 0] = False
    return TokenBatch(ids, mask, keep)


def make_sae(hook_point: str) -> SAE:
    torch.manual_seed(1)
    return SAE.from_config(TopKSAEConfig(d_in=16, n_features=40, k=4, hook_point=hook_point)).eval()


@pytest.mark.parametrize("family", MASKED)
def test_a_masked_model_predicts_the_tokens_that_are_hidden_and_every_figure_is_that_of_passes_by_hand(family):
    model, batch, layer = masked_model(family), text(), 1
    path = f"{model.base_model_prefix}.encoder.layer.{layer}"
    sae = make_sae(f"{path}.output")
    other = torch.randn(50, 16, generator=torch.Generator().manual_seed(5))
    metrics = evaluate_sae(sae, model, [batch], Tokenizer(), calibration=other, disable_tqdm=True)  # type: ignore
    assert metrics["protocol"]["loss"].startswith("masked-LM cross-entropy: the mask token (id 4) hides 15% of")

    hidden = torch.zeros_like(batch.keep)
    for row, (ids, mask, keep) in enumerate(zip(*batch, strict=True)):
        digest = hashlib.sha256(ids[mask.bool()].numpy().astype("<i8").tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        places = [position for position in range(12) if keep[position]]
        order = torch.randperm(len(places), generator=generator).tolist()
        for index in order[: max(1, round(0.15 * len(places)))]:
            hidden[row, places[index]] = True
    assert hidden.sum() == 19 * 2 + 1
    covered = torch.where(hidden, MASK, batch.input_ids)

    def run(ids, replacement=None):
        """Logits, and what leaves the block, with something else put there where tokens count."""
        seen = {}

        def hook(module, args, output):
            x = output[0] if isinstance(output, tuple) else output
            seen["x"] = x
            if replacement is None:
                return output
            changed = x.clone()
            changed[batch.keep] = replacement(x[batch.keep])
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = model.get_submodule(path).register_forward_hook(hook)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=batch.attention_mask).logits
        handle.remove()
        return logits, seen["x"]

    runs = {
        "clean": run(covered)[0],
        "spliced": run(covered, lambda x: sae(x).reconstruction)[0],
        "zero": run(covered, torch.zeros_like)[0],
        "mean": run(covered, lambda x: other.mean(0).expand_as(x))[0],
    }
    ce = {name: float(F.cross_entropy(logits[hidden], batch.input_ids[hidden])) for name, logits in runs.items()}
    for name, value in ce.items():
        assert metrics[f"ce_{name}"] == pytest.approx(value, rel=1e-5), name
    assert metrics["ce_increase"] == pytest.approx(ce["spliced"] - ce["clean"], abs=1e-5)
    recovered = (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"])
    defined = ce["zero"] - ce["clean"] >= 0.05
    assert metrics["loss_recovered"] == (pytest.approx(recovered, rel=1e-4) if defined else None)
    log = {name: runs[name][hidden].log_softmax(-1) for name in ("clean", "spliced")}
    kl = (log["clean"].exp() * (log["clean"] - log["spliced"])).sum(-1).mean()
    assert metrics["kl"] == pytest.approx(float(kl), rel=1e-4)

    # What needs no prediction is measured on the text as it is.
    x = run(batch.input_ids)[1][batch.keep]
    with torch.no_grad():
        output = sae(x)
    plain = longhand.reconstruction(x.numpy(), output.reconstruction.numpy(), output.features.to_dense().numpy())
    for name, value in plain.items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name


def test_what_is_hidden_depends_on_the_sequence_alone():
    batch, model = text(), masked_model("bert")
    predictions = predictions_of(model, batch, MASK)
    whole = predictions.question(batch)
    wider = TokenBatch(*(F.pad(part, (0, 3), value=value) for part, value in zip(batch, (1, 0, False), strict=True)))
    for row in range(len(batch.keep)):
        one = predictions.question(TokenBatch(*(part[row : row + 1] for part in wider)))
        assert torch.equal(one.batch.input_ids[0, :12], whole.batch.input_ids[row])
    assert torch.equal(predictions.question(batch).answers, whole.answers)
    assert torch.equal(batch.input_ids.flatten()[whole.positions], whole.answers)


def test_the_figures_are_the_same_however_the_text_is_shared_into_batches():
    model, batch = masked_model("esm"), text()
    sae, parts = (
        make_sae("esm.encoder.layer.1.output"),
        [TokenBatch(*part) for part in zip(*(p.split(7) for p in text()), strict=True)],
    )
    given = {"calibration": torch.zeros(1, 16), "disable_tqdm": True}
    whole, shared = (evaluate_sae(sae, model, data, **given) for data in ([batch], parts))
    for name in ("ce_clean", "ce_spliced", "ce_zero", "loss_recovered", "kl", "explained_variance"):
        assert shared[name] == pytest.approx(whole[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("make", "mask", "why"),
    [
        (BertModel, MASK, "BertModel gives no prediction of tokens"),
        (BertForTokenClassification, MASK, "BertForTokenClassification gives no prediction of tokens"),
        (BertLMHeadModel, MASK, "BertLMHeadModel looks at what follows a token too, and is no masked language model"),
        (BertForMaskedLM, None, "the mask token of BertForMaskedLM is not known: pass its tokenizer"),
    ],
)
def test_a_model_without_such_a_loss_is_measured_without_and_report_and_card_say_why(make, mask, why):
    torch.manual_seed(0)
    model = make(BertConfig(**SIZES, max_position_embeddings=12, initializer_range=0.5)).eval()
    prefix = "" if make is BertModel else "bert."
    sae = make_sae(f"{prefix}encoder.layer.1.output")
    tokenizer = None if mask is None else Tokenizer()
    metrics = evaluate_sae(sae, model, [text()], tokenizer, calibration=torch.zeros(1, 16), disable_tqdm=True)  # type: ignore
    assert metrics["ce_clean"] is metrics["loss_recovered"] is metrics["kl"] is None
    assert metrics["notes"]["ce_clean"] == metrics["protocol"]["loss"] == f"no CE: {why}"
    with torch.no_grad():
        hidden = model(*text()[:2], output_hidden_states=True).hidden_states[2][text().keep]
        output = sae(hidden)
    error = (output.reconstruction - hidden).square().sum(-1).mean()
    assert metrics["mse"] == pytest.approx(float(error), rel=1e-4) and metrics["l0"] == pytest.approx(4)
    assert report(metrics).count(why) == 1
    sae.config.metrics = metrics
    assert "- No figure for loss recovered, CE increase, CE clean, CE spliced, CE zero" in str(render_card(sae))
    assert why in str(render_card(sae))


def test_a_causal_model_that_rules_tokens_out_predicts_the_next_token():
    model = copy.deepcopy(language_model())
    model.lm_head.register_forward_hook(lambda *given: given[2].index_fill(-1, torch.tensor([5, 9]), -torch.inf))
    assert predictions_of(model, batches(1)[0]).of == "next"


def test_a_causal_model_predicts_the_next_token():
    assert predictions_of(language_model(), batches(1)[0]).of == "next"
    decoder = BertLMHeadModel(BertConfig(**SIZES, max_position_embeddings=12, is_decoder=True)).eval()
    assert predictions_of(decoder, text()).of == "next"
