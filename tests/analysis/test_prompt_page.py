import pytest

from hfsae.analysis.prompt_page import read_prompts
from tests.analysis.tiny import read_longhand, setting, texts


def test_prompts_have_the_features_of_every_token():
    given, prompts = setting(), [text for text in texts() if text][:6]
    read = read_prompts(*given, prompts)
    for number, prompt in enumerate(read):
        assert "".join(prompt["tokens"]).split() == prompts[number].split()
    for token in read_longhand(prompts, given):
        prompt = read[token.document]
        fires = dict(zip(prompt["features"][token.position], prompt["activations"][token.position], strict=True))
        strongest = token.features.argsort(descending=True)[: int((token.features > 0).sum())].tolist()
        assert list(fires) == strongest and prompt["kept"][token.position]
        assert list(fires.values()) == pytest.approx(token.features[strongest].tolist(), rel=1e-3)


def test_left_out_tokens_have_no_features_and_an_empty_prompt_is_an_error():
    (prompt,) = read_prompts(*setting(), ["w1 w2 w3"])
    assert prompt["kept"] == [False, True, True] and prompt["features"][0] == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        read_prompts(*setting(), ["w1", " \n"])
