import math

import pytest
import torch

from hfsae import TopKSAE
from hfsae.analysis import TokenTexts
from hfsae.meaning.finding import labelled_features, passage_features, promoting_features
from tests.analysis.tiny import read_longhand, setting
from tests.meaning.tiny import collection


def test_a_passage_is_compared_with_the_background_by_the_formula_of_its_docstring():
    text = "w1 w3 w5 w7 w2 w2 w4"
    counts = sum((token.features > 0).double() for token in read_longhand([text], setting()))
    n, about = len(text.split()) - 1, collection().about
    found = passage_features(*setting(), collection(), text, top=40, prior=3.0)
    assert found and [one.z for one in found] == sorted((one.z for one in found), reverse=True)
    for one in found:
        y, everywhere = float(counts[one.feature]), int(collection().statistics.tokens_firing[one.feature])
        assert one.tokens == y and one.share == y / n
        alpha = 3.0 * everywhere / about.n_tokens
        delta = math.log((y + alpha) / (n + 3 - y - alpha))
        delta -= math.log((everywhere + alpha) / (about.n_tokens + 3 - everywhere - alpha))
        assert one.log_odds == pytest.approx(delta) and delta > 0
        assert one.z == pytest.approx(delta / math.sqrt(1 / (y + alpha) + 1 / (everywhere + alpha)))
    left_out = set(counts.nonzero().flatten().tolist()) - {one.feature for one in found}
    assert all(counts[feature] / n < 0.6 for feature in left_out)  # those that fire no more often here


def test_what_cannot_be_compared_is_refused():
    sae, model, tokenizer = setting()
    with pytest.raises(ValueError, match="no token that counts"):
        passage_features(sae, model, tokenizer, collection(), "w1")
    with pytest.raises(ValueError, match="prior is 0"):
        passage_features(sae, model, tokenizer, collection(), "w1 w2", prior=0)
    with pytest.raises(ValueError, match="collected of other weights .*: run collect_features on this SAE"):
        passage_features(TopKSAE(sae.config), model, tokenizer, collection(), "w1 w2")
    with pytest.raises(ValueError, match="collected of other settings than these \\(k was 4 and is 2\\)"):
        passage_features(sae.with_k(2), model, tokenizer, collection(), "w1 w2")


def test_labels_are_found_by_their_words():
    labels = {3: "Names of months, in dates", 5: "the word month", 7: ""}
    assert labelled_features(labels, "dates Names") == [3]
    assert labelled_features(labels, "month") == [5]
    assert labelled_features(labels, "...") == []


def test_promoting_features_are_those_whose_logit_lists_have_the_token():
    parts, logits = TokenTexts(setting().tokenizer), collection().logits
    assert logits is not None
    token = int(logits.promoted[5, 0])
    word = parts([token])[0].strip()
    found = promoting_features(collection(), parts, f"nothing {word.upper()}", top=40)
    rows = (logits.promoted == token).any(1).nonzero().flatten().tolist()
    assert sorted(feature for feature, *_ in found) == collection().features[torch.tensor(rows)].tolist()
    assert found[0][2] == max(effect for *_, effect in found) and found[0][1].strip() == word
    assert promoting_features(collection(), parts, "") == []
    with pytest.raises(ValueError, match="top is -1; expected 1 or more"):
        promoting_features(collection(), parts, word, top=-1)
