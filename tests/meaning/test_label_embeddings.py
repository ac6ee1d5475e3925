"""Embeddings of labels by the language model of the repository, against its own outputs one text at a time."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hfsae.meaning.label_embeddings import Embedder, nearest_labels

TINY_LM = Path(__file__).parents[2] / "examples" / "tiny_lm"
TEXTS = ["an import of a module", "import", "the end of a line of text that is longer than the others", "raise"]


@pytest.fixture(scope="module")
def longhand():
    """The last layer's vectors of each text, read alone."""
    model, tokenizer = AutoModel.from_pretrained(TINY_LM).eval(), AutoTokenizer.from_pretrained(TINY_LM)
    with torch.no_grad():
        return [model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0] for text in TEXTS]


def sentence_folder(folder: Path, *, modules=("Transformer", "Pooling", "Normalize"), **pooling: bool) -> str:
    """The tiny model in a folder as sentence-transformers writes it."""
    for file in TINY_LM.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    rows = [
        {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 128, **pooling}))
    return str(folder)


def test_a_model_of_transformers_is_averaged_over_tokens(longhand):
    found = Embedder(str(TINY_LM), batch_size=3)(TEXTS)
    expected = torch.stack([hidden.mean(0) / hidden.mean(0).norm() for hidden in longhand])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("mode", "pool"),
    [
        ("cls_token", lambda hidden: hidden[0]),
        ("mean_tokens", lambda hidden: hidden.mean(0)),
        ("max_tokens", lambda hidden: hidden.amax(0)),
        ("lasttoken", lambda hidden: hidden[-1]),
    ],
)
def test_a_folder_of_sentence_transformers_says_how_tokens_are_pooled(longhand, tmp_path, mode, pool):
    name = sentence_folder(tmp_path, **{f"pooling_mode_{mode}": True, "pooling_mode_weightedmean_tokens": False})
    expected = torch.stack([pool(hidden) / pool(hidden).norm() for hidden in longhand])
    torch.testing.assert_close(Embedder(name)(TEXTS), expected, atol=1e-5, rtol=1e-4)


def test_what_is_not_run_here_is_refused(tmp_path):
    dense = tmp_path / "dense"
    dense.mkdir()
    name = sentence_folder(dense, modules=("Transformer", "Pooling", "Dense"), pooling_mode_mean_tokens=True)
    with pytest.raises(ValueError, match="module Dense"):
        Embedder(name)
    other = tmp_path / "other"
    other.mkdir()
    name = sentence_folder(other, pooling_mode_weightedmean_tokens=True)
    with pytest.raises(ValueError, match="pooling_mode_weightedmean_tokens"):
        Embedder(name)


def test_the_nearest_labels_are_those_of_the_largest_cosine(longhand):
    labels = {7: TEXTS[0], 3: TEXTS[2], 9: TEXTS[3]}
    found = nearest_labels(labels, "import", Embedder(str(TINY_LM)), top=2)
    vectors = {feature: hidden.mean(0) for feature, hidden in zip((7, 1, 3, 9), longhand, strict=True)}
    cosines = {feature: float(torch.cosine_similarity(vectors[feature], vectors[1], dim=0)) for feature in labels}
    assert [feature for feature, _ in found] == sorted(cosines, key=lambda feature: -cosines[feature])[:2]
    assert [value for _, value in found] == pytest.approx([cosines[feature] for feature, _ in found], abs=1e-5)
    assert nearest_labels({}, "import", Embedder(str(TINY_LM))) == []
    with pytest.raises(ValueError, match="top is -1; expected 1 or more"):
        nearest_labels(labels, "import", Embedder(str(TINY_LM)), top=-1)
