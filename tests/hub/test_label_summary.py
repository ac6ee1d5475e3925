from hfsae.hub.card import render_card
from hfsae.identity import weights_sha256
from hfsae.label_file import Label, Score, write_labels
from tests.analysis.tiny import setting


def text_of(folder) -> str:
    return render_card(setting().sae, folder=folder).text


def test_a_card_says_who_wrote_the_labels_and_how_well_they_foretell(tmp_path):
    score = {"detection_random": Score(0.6, 0.4, 0.8, 9, 9), "fuzzing_random": Score(0.5, 0.3, 0.7, 9, 9)}
    better = {"detection_random": Score(0.7, 0.5, 0.9, 9, 9)}
    labels = {1: Label("a"), 2: Label("b", "org/chat|`x`", "0", score), 3: Label("c", "org/chat|`x`", "0", better)}
    write_labels(tmp_path / "labels.json", labels, weights_sha256(setting().sae))
    text = " ".join(text_of(tmp_path).split())
    assert "3 of its features have labels" in text and "wrote 2 of them" in text and "1 is by people" in text
    assert "0.65 (detection against random text), 0.5 (fuzzing against random text); a guess has 0.5" in text
    assert "chat|`x`" not in text  # escaped


def test_a_simulation_is_told_apart_since_its_guess_has_nothing(tmp_path):
    scores = {"detection_random": Score(0.6, 0.4, 0.8, 9, 9), "simulation": Score(0.3, 0.1, 0.5, 5, 5)}
    other = {"simulation": Score(0.1, -0.1, 0.5, 5, 5)}
    labels = {1: Label("a", "org/chat", "0", scores), 2: Label("b", "org/chat", "0", other)}
    write_labels(tmp_path / "labels.json", labels, weights_sha256(setting().sae))
    text = " ".join(text_of(tmp_path).split())
    assert "0.6 (detection against random text); a guess has 0.5." in text
    assert "correlate with the true ones by 0.2 on average; a guess has 0." in text


def test_labels_of_other_weights_are_not_spoken_of(tmp_path):
    assert "labels.json" not in text_of(tmp_path)
    write_labels(tmp_path / "labels.json", {1: "a"}, "0" * 64)
    assert "labels.json" not in text_of(tmp_path)
