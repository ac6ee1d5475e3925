import pytest
import torch

from hfsae.analysis import feature_activations, read_sequences
from tests.analysis.tiny import N_FEATURES, read_longhand, setting, texts


def test_the_table_holds_every_token_with_its_activations():
    table = feature_activations(*setting(), texts(), [7, 3], batch_size=3)
    assert table.column_names == ["document", "position", "token_id", "token", "kept", "feature_7", "feature_3"]
    rows = table.to_list()
    for number, text in enumerate(texts()):
        assert "".join(row["token"] for row in rows if row["document"] == number).strip() == text
    known = {(token.document, token.position): token.features for token in read_longhand(texts(), setting())}
    for row in rows:
        place = row["document"], row["position"]
        assert row["kept"] == (place in known)
        expected = known[place] if row["kept"] else torch.zeros(N_FEATURES)
        assert row["feature_7"] == pytest.approx(float(expected[7]), abs=1e-4)
        assert row["feature_3"] == pytest.approx(float(expected[3]), abs=1e-4)


def test_pieces_hold_all_features():
    (piece,) = read_sequences(*setting(), ["w1 w2 w3"])
    assert piece.activations.shape == (3, N_FEATURES) and piece.texts == [" w1", " w2", " w3"]
    assert piece.kept == [False, True, True] and (piece.activations > 0).sum(1).tolist() == [0, 4, 4]


def test_no_text_is_an_empty_table():
    assert len(feature_activations(*setting(), [""], [1])) == 0
