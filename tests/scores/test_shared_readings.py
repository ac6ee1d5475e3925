"""Scores with what several SAEs share are those without it, and the language model reads once."""

from copy import deepcopy

import pytest
import torch
from datasets import Dataset

from hfsae.scores import (
    DocumentSet,
    LabelledDocument,
    LabelledText,
    PatternLabels,
    SharedReadings,
    probe_concepts,
    score,
)
from tests.analysis.tiny import setting, texts

CHOSEN = {"max_tokens": 10**6, "n_draws": 20, "batch_size": 4}


@pytest.fixture(scope="module")
def text() -> LabelledText:
    sides = (Dataset.from_dict({"text": texts(120, seed=seed)}) for seed in (0, 1))
    return LabelledText(*sides, PatternLabels({"w3": r"\bw3\b", "w4 or w5": r"\bw[45]\b"}), "words")


def other_saes(n: int):
    """SAEs at the same place, with other features."""
    for seed in range(n):
        sae = deepcopy(setting().sae)
        torch.manual_seed(10 + seed)
        with torch.no_grad():
            sae.encoder.weight.normal_()
        yield sae


@pytest.fixture(scope="module")
def documents() -> list[DocumentSet]:
    """Documents of w3, and others; some of two pieces, and one of one token, which does not count."""
    chosen = [text for seed in range(12) for text in texts(60, seed=seed) if text] + ["w1"]
    told = [
        LabelledDocument(text, "w3" if "w3" in text.split() else "none", str(i // 2), i % 3 > 0)
        for i, text in enumerate(chosen)
    ]
    return [DocumentSet("w3", tuple(told)), DocumentSet("w3 of few", tuple(told[:500]))]


@pytest.fixture
def runs():
    """Counts the runs of the language model."""
    counted = []
    hook = setting().model.transformer.h[0].register_forward_hook(lambda *_: counted.append(1))
    yield counted
    hook.remove()


@pytest.mark.parametrize("kinds", [["tokens", "absorption"], ["absorption"], ["documents", "absorption"]])
def test_scores_are_those_of_an_sae_alone(text, documents, kinds):
    _, model, tokenizer = setting()
    shared, options = SharedReadings(), {"kinds": kinds, "documents": documents, **CHOSEN}
    for sae in (setting().sae, *other_saes(2)):
        alone = score(sae, model, tokenizer, text, **options)
        with_others = score(sae, model, tokenizer, text, shared=shared, **options)
        assert with_others.recorded() == alone.recorded()
    for probing in (alone.tokens, *alone.documents.values()):
        if probing is not None:
            assert {basis for basis, _ in probing.probes} >= {"features", "neurons", "PCA", "untrained SAE"}


def test_the_model_reads_once(text, runs):
    _, model, tokenizer = setting()
    shared, needed = SharedReadings(), []
    for sae in other_saes(3):
        runs.clear()
        score(sae, model, tokenizer, text, kinds=["tokens"], beside=["neurons"], shared=shared, **CHOSEN)
        needed.append(len(runs))
    assert needed[0] > 0 and needed[1:] == [0, 0]


@pytest.mark.parametrize("there_is_room", [True, False])
def test_it_reads_documents_once_where_there_is_room_for_them(text, documents, runs, there_is_room):
    _, model, tokenizer = setting()
    options = {"kinds": ["documents"], "documents": documents, "beside": ["neurons"], **CHOSEN}
    shared, needed, found = SharedReadings() if there_is_room else SharedReadings(document_bytes=1000), [], []
    for sae in other_saes(2):
        runs.clear()
        found.append(score(sae, model, tokenizer, text, shared=shared, **options))
        needed.append(len(runs))
    assert needed[0] > 0 and needed[1] == (0 if there_is_room else needed[0])
    assert found[0].recorded() != found[1].recorded()


def test_an_sae_that_reads_other_tokens_or_elsewhere_shares_nothing(text, runs):
    _, model, tokenizer = setting()
    shared = SharedReadings()
    score(setting().sae, model, tokenizer, text, kinds=["tokens"], shared=shared, **CHOSEN)
    for field, value in (
        ("context_length", 6),
        ("exclude_positions", [0, 1]),
        ("hook_point", "transformer.h.0.output"),
    ):
        sae = next(other_saes(1))
        setattr(sae.config, field, value)
        runs.clear()
        found = score(sae, model, tokenizer, text, kinds=["tokens"], shared=shared, **CHOSEN)
        assert len(runs) > 0
        assert found.recorded() == score(sae, model, tokenizer, text, kinds=["tokens"], **CHOSEN).recorded()


def test_only_the_bases_that_are_asked_for_are_probed_and_letters_only_if_so(text):
    _, model, tokenizer = setting()
    sae = next(other_saes(1))
    all_of_them = score(sae, model, tokenizer, text, kinds=["tokens", "absorption"], **CHOSEN)
    few = score(
        sae, model, tokenizer, text, kinds=["tokens", "absorption"], beside=["neurons"], letters=False, **CHOSEN
    )
    assert few.letters is None and not any("letters" in why for why in few.refused)
    assert {basis for basis, _ in few.tokens.probes} == {"features", "neurons", "linear probe"}
    for key in few.tokens.probes:
        assert few.tokens.f1(*key) == all_of_them.tokens.f1(*key)
    assert few.absorption == all_of_them.absorption
    with pytest.raises(ValueError, match="and not 'weights'"):
        score(sae, model, tokenizer, text, beside=["weights"])


def test_another_model_or_text_is_refused(text):
    sae, model, tokenizer = setting()
    shared = SharedReadings()
    score(sae, model, tokenizer, text, kinds=["tokens"], shared=shared, **CHOSEN)
    other_text = LabelledText(text.train, text.held_out, text.labels)
    for given in (
        (deepcopy(model), tokenizer, text),
        (model, deepcopy(tokenizer), text),
        (model, tokenizer, other_text),
    ):
        with pytest.raises(ValueError, match="are of another language model, tokenizer or text: make new ones"):
            score(sae, *given, kinds=["tokens"], shared=shared)


def test_known_probes_of_other_concepts_are_refused():
    from tests.scores.test_probing import rows

    known = probe_concepts(rows(0), rows(1), ["it"])
    with pytest.raises(ValueError, match="of other rows or concepts"):
        probe_concepts(rows(0), rows(1), ["something else"], known=known)
