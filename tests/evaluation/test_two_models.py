"""A crosscoder of two language models in an evaluation: each source in its own model, by an independent route."""

from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hfsae import SAE, CrosscoderSAEConfig, evaluate_sae
from hfsae.autoencoder.initialisation import initialise
from hfsae.hooks import SideBySide
from tests.evaluation import longhand
from tests.evaluation.tiny import VOCABULARY, WIDTH, batches, language_model
from tests.hooks.witness import recorded, replaced

PLACES = {"base": "transformer.h.1.output", "tuned": "model.layers.0.output"}
GENERATOR = torch.Generator().manual_seed(3)
CALIBRATION = {
    f"{source}.{place}": torch.randn(50, WIDTH, generator=GENERATOR) + 0.5 for source, place in PLACES.items()
}


@cache
def other_model() -> LlamaForCausalLM:
    """Another class, with another number of blocks."""
    torch.manual_seed(2)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes, initializer_range=0.5)
    return LlamaForCausalLM(config).eval()


def models() -> dict:
    return {"base": language_model(), "tuned": other_model()}


@torch.no_grad()
def activations_of(batch) -> dict[str, torch.Tensor]:
    read = {}
    for source, model in models().items():
        with recorded(model, [PLACES[source]]) as seen:
            model(batch.input_ids, attention_mask=batch.attention_mask)
        read[source] = seen[PLACES[source]]
    return read


@pytest.fixture(scope="module")
def crosscoder() -> SAE:
    sizes = {"source_names": ["base", "tuned"], "source_widths": [WIDTH, WIDTH], "n_features": 80, "k": 6}
    torch.manual_seed(0)
    sae = SAE.from_config(CrosscoderSAEConfig(**sizes, hook_point="+".join(PLACES.values()))).eval()
    rows = [torch.cat([part[batch.keep] for part in activations_of(batch).values()], 1) for batch in batches()]
    return initialise(sae, torch.cat(rows))


@torch.no_grad()
def by_hand(sae: SAE, source: str) -> dict[str, float]:
    model, place, tables = models()[source], PLACES[source], {name: [] for name in ("y", "y_hat", "z")}
    logits = {name: [] for name in ("clean", "spliced", "zero", "mean")}
    sequences = []
    mean = CALIBRATION[f"{source}.{place}"].mean(0)
    for batch in batches():
        read = activations_of(batch)
        y, y_hat = read[source], sae.split(sae(read).reconstruction)[source]
        for name, table in (("y", y), ("y_hat", y_hat), ("z", sae.encode(read))):
            tables[name].append(table[batch.keep].numpy())
        logits["clean"].append(model(batch.input_ids, attention_mask=batch.attention_mask).logits.numpy())
        for name, other in (("spliced", y_hat), ("zero", torch.zeros_like(y)), ("mean", mean.expand_as(y))):
            put = torch.where(batch.keep[..., None], other, y)
            with replaced(model, place, lambda _, put=put: put):
                logits[name].append(model(batch.input_ids, attention_mask=batch.attention_mask).logits.numpy())
        sequences.append([part.numpy() for part in batch])
    ids, mask, keep = (np.concatenate(parts) for parts in zip(*sequences, strict=True))
    stacked = {name: np.concatenate(parts) for name, parts in tables.items()}
    runs = {name: np.concatenate(parts) for name, parts in logits.items()}
    return {
        **longhand.reconstruction(stacked["y"], stacked["y_hat"], stacked["z"]),
        **longhand.predictions(runs, ids, mask, keep),
    }


def test_every_source_has_the_figures_that_it_has_by_hand_in_its_own_model(crosscoder):
    measured = evaluate_sae(crosscoder, SideBySide(models()), batches(), calibration=CALIBRATION, disable_tqdm=True)
    for source in PLACES:
        expected = by_hand(crosscoder, source)
        found = {name: measured["sources"][source][name] for name in expected}
        undefined = {name for name, value in expected.items() if value is None}
        assert all(found.pop(name) is expected.pop(name) for name in undefined)
        assert found == pytest.approx(expected, rel=3e-4, abs=1e-5)
    base, tuned = measured["sources"].values()
    assert base["ce_clean"] != pytest.approx(tuned["ce_clean"], rel=0.01)


def test_a_model_that_is_not_given_is_named(crosscoder):
    with pytest.raises(ValueError, match="source 'tuned' has no model; given are base, other"):
        evaluate_sae(crosscoder, SideBySide({"base": language_model(), "other": other_model()}), batches())


def test_one_model_in_the_place_of_two_is_refused():
    sizes = {"source_names": ["base", "tuned"], "source_widths": [WIDTH, WIDTH], "n_features": 80}
    sae = SAE.from_config(CrosscoderSAEConfig(**sizes, hook_point="resid_post.1"))
    with pytest.raises(ValueError, match="one for each of base, tuned, and got one GPT2LMHeadModel"):
        evaluate_sae(sae, language_model(), batches())
