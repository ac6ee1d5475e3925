"""What is read, against torch's own hooks, one piece at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfsae.scores.concepts import PatternLabels
from hfsae.scores.labelled_rows import COMPONENTS, COORDINATES, FEATURES, NEURONS, UNTRAINED, all_of
from hfsae.scores.readings import LabelledReader
from tests.analysis.tiny import read_longhand, setting, texts
from tests.data.tiny import pythia_like

LABELS = PatternLabels({"w3": r"\bw3\b", "any": r"\w"})
BASES = [FEATURES, COORDINATES, NEURONS, UNTRAINED, COMPONENTS]


@pytest.fixture(scope="module")
def reader():
    reader = LabelledReader(*setting(), batch_size=4)
    reader.fit(Dataset.from_dict({"text": texts(60)}))
    return reader


def longhand(documents):
    """Tokens in the order of documents and positions, as `read` gives them sorted."""
    given = setting()
    tokens = read_longhand(documents, given)
    coordinates, neurons, labels = [], [], []
    for token in tokens:
        acts: list[torch.Tensor] = []
        hooks = [
            block.mlp.act.register_forward_hook(lambda _, __, out, acts=acts: acts.append(out[0]))
            for block in given.model.transformer.h[:2]
        ]
        with torch.no_grad():
            hidden = given.model(torch.tensor([token.piece]), output_hidden_states=True).hidden_states[2][0]
        for hook in hooks:
            hook.remove()
        coordinates.append(hidden[token.column])
        neurons.append(torch.cat([act[token.column] for act in acts]))
        labels.append([documents[token.document].split()[token.position] == "w3", True])
    features = torch.stack([token.features for token in tokens])
    return tokens, features, torch.stack(coordinates), torch.stack(neurons), np.array(labels)


def test_all_bases_and_labels_are_those_of_every_token(reader):
    documents = [text for text in texts(12) if len(text.split()) < 12]  # one piece each
    rows = all_of(reader.tokens(Dataset.from_dict({"text": documents}), LABELS, BASES, 10**6), "it")
    tokens, features, coordinates, neurons, labels = longhand(documents)
    assert len(rows) == len(tokens) > 20 and reader.neuron_layers == 2

    number = np.array([token.document for token in tokens])[:, None]
    theirs = np.concatenate([number, labels, features, coordinates, neurons], 1)
    dense = [rows.values[FEATURES].toarray(), rows.values[COORDINATES], rows.values[NEURONS]]
    mine = np.concatenate([rows.documents[:, None], rows.labels, *dense], 1)
    for document in range(len(documents)):
        one, other = (table[table[:, 0] == document] for table in (mine, theirs))
        assert one == pytest.approx(other, abs=1e-4)
    assert ((rows.values[UNTRAINED].toarray() != 0).sum(1) <= 4).all()
    # PCA of all components turns the space about its mean, and changes no distance.
    turned, plain = (rows.values[basis][:5] for basis in (COMPONENTS, COORDINATES))
    assert np.linalg.norm(turned[1:] - turned[0], axis=1) == pytest.approx(
        np.linalg.norm(plain[1:] - plain[0], axis=1), abs=1e-3
    )


def test_documents_are_means_over_tokens(reader):
    documents = [text for text in texts(20) if text]
    labels = np.ones((len(documents) + 1, 1), bool)
    sources = np.arange(len(documents) + 1)
    rows = reader.documents(Dataset.from_dict({"text": [*documents, "w1"]}), labels, sources)
    tokens = read_longhand(documents, setting())
    counted = sorted({token.document for token in tokens})
    assert rows.documents.tolist() == counted  # those of one word have no token that counts
    expected = torch.stack(
        [torch.stack([t.features for t in tokens if t.document == document]).mean(0) for document in counted]
    )
    assert rows.values[FEATURES].toarray() == pytest.approx(expected.numpy(), abs=1e-4)


def test_of_a_long_document_few_pieces_are_read(reader):
    long = " ".join(f"w{i % 40}" for i in range(12 * 40))
    rows = all_of(reader.tokens(Dataset.from_dict({"text": [long]}), LABELS, [COORDINATES], 10**6), "it")
    assert len(rows) == 5 * 11  # the pieces 0, 8, 16, 24 and 32 of 40, without position 0
    assert rows.labels[:, 0].sum() == sum(i % 40 == 3 for p in range(0, 40, 8) for i in range(12 * p + 1, 12 * p + 12))


def test_a_bos_that_counts_has_no_label_of_another_token():
    """BOS stands in front of both pieces, w1 to w5 and w6 to w3; w5 is the last of the first, w3 of the document."""
    of_bos: dict[str, Any] = {"prepend_bos": True, "exclude_positions": [], "exclude_special_tokens": False}
    sae, model, _ = setting.__wrapped__(**of_bos)
    sae.config.context_length = 6
    tokenizer = pythia_like()
    tokenizer.bos_token = tokenizer.eos_token
    reader = LabelledReader(sae, model, tokenizer)
    labels = PatternLabels({"w5": r"\bw5\b", "w3": r"\bw3\b"})
    # Of the document in row 7 the second piece is read as well as the first.
    document = Dataset.from_dict({"text": [*[""] * 7, "w1 w1 w2 w2 w5 w6 w7 w3"]})
    rows = all_of(reader.tokens(document, labels, [COORDINATES], 10**6), "it")
    of_first, of_second = [[0, 0]] * 5 + [[1, 0]], [[0, 0]] * 3 + [[0, 1]]
    assert sorted(rows.labels.astype(int).tolist()) == sorted(of_first + of_second)


@pytest.mark.parametrize("begins_with_bos", [False, True])
def test_of_a_long_document_with_a_bos_in_front_of_pieces_the_first_is_one(begins_with_bos):
    sae, model, _ = setting.__wrapped__(prepend_bos=True)
    tokenizer = pythia_like()
    tokenizer.bos_token = tokenizer.eos_token
    reader = LabelledReader(sae, model, tokenizer)
    text = " ".join(f"w{i % 40}" for i in range(11 * 20))
    if begins_with_bos:
        text = f"{tokenizer.bos_token} {text}"
    starts = [start for batch in reader._some(Dataset.from_dict({"text": [text]})) for start in batch.starts.tolist()]
    # Pieces of 11 tokens behind a BOS: of the 20 those with the numbers 0, 8 and 16.
    first = 0 if begins_with_bos else -1
    assert sorted(starts) == [first, 8 * 11 + (0 if begins_with_bos else -1), 16 * 11 + (0 if begins_with_bos else -1)]


def test_text_that_is_too_short_is_refused():
    reader = LabelledReader(*setting())
    with pytest.raises(ValueError, match="2 tokens to fit on are too few for activations of width 16"):
        reader.fit(Dataset.from_dict({"text": ["w1 w2 w3"]}))
    with pytest.raises(ValueError, match="it has no token that counts"):
        all_of(reader.tokens(Dataset.from_dict({"text": ["w1"]}), LABELS, [COORDINATES], 10), "it")
