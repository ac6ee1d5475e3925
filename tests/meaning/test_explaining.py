import pytest

from hfsae.analysis import TokenTexts
from hfsae.meaning import Prompts
from hfsae.meaning.explaining import explanation_in, explanation_prompt, shown_and_held_out
from tests.analysis.tiny import setting
from tests.meaning.tiny import collection, explained

ASKED = [{"role": "system", "content": "for instance\n[EXPLANATION]: idioms of everyday  speech"}]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("[EXPLANATION]: the word is", "the word is"),
        ("First I look.\n[EXPLANATION]: a\n[EXPLANATION]:  **names of months** \nmore", "names of months"),
        ("the word is", None),
        ("[EXPLANATION]:", None),
        ("[EXPLANATION]: ...", None),
        ("[EXPLANATION]: The feature responds to the following:", None),
        ("[EXPLANATION]: idioms of everyday speech", None),
        (f"[EXPLANATION]: {'a ' * 200}", None),
        ("", None),
    ],
)
def test_what_is_no_explanation_is_nonsense(answer, text):
    assert explanation_in(answer, ASKED) == text


def test_what_is_scored_was_not_shown():
    for feature in explained():
        shown, held_out = shown_and_held_out(collection().of(feature), 8)
        places = [{(example.document, example.position) for example in part} for part in (shown, held_out)]
        assert places[0] and places[1] and not places[0] & places[1] and len(shown) <= 8
        assert shown[0] == collection().of(feature).top[0]


def test_the_prompt_marks_the_tokens_on_which_the_feature_fires():
    feature = collection().of(explained()[0])
    parts = TokenTexts(setting().tokenizer)
    system, user, beginning = explanation_prompt(feature, feature.top[:2], parts, Prompts.load())
    peak = parts(feature.top[0].token_ids)[feature.top[0].peak]
    first = user["content"].split("Example 2")[0]
    assert f'"{peak}" 10' in first  # the strongest example's own token has all of the ten
    assert peak in "".join(piece.split(">>")[0] for piece in first.split("<<")[1:])
    assert parts([feature.promoted[0].token_id])[0] in user["content"].split("likelier")[1]
    assert system["role"] == "system" and beginning == {"role": "assistant", "content": "[EXPLANATION]:"}
