import copy

import pytest
from transformers import AutoTokenizer

from hfsae import SAETrainer, collect_features, evaluate_sae, feature_effects, self_check, steer_model
from hfsae.analysis import export_delphi, read_sequences
from hfsae.dashboard import write_dashboard
from hfsae.data import TokenBlocks
from hfsae.data.prompts import tokenize
from hfsae.data.tokenizer_identity import refuse_no_tokenizer, tokenizer_sha256
from hfsae.meaning import contrast
from hfsae.tables.written import featurize
from tests.analysis import tiny
from tests.dashboard.tiny import collection
from tests.data.tiny import language_model, pythia_like, text_dataset
from tests.models_on_disk import TINY_LM, tokenizer


class Slow:
    """A tokenizer without the library tokenizers."""

    special_tokens_map = {"eos_token": "</s>"}

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary


def test_a_tokenizer_that_is_loaded_again_or_was_used_is_the_same():
    again = AutoTokenizer.from_pretrained(TINY_LM)
    again(["def f", "x"], max_length=1, truncation=True)
    assert tokenizer_sha256(again) == tokenizer_sha256(tokenizer()) != tokenizer_sha256(pythia_like())


@pytest.mark.parametrize("change", [{"chat_template": "{{ messages }}"}, {"eos_token": "w1"}])
def test_templates_and_special_tokens_make_another_one(change):
    other = copy.deepcopy(pythia_like())
    for name, value in change.items():
        setattr(other, name, value)
    assert tokenizer_sha256(other) != tokenizer_sha256(pythia_like())


def test_without_the_library_the_vocabulary_tells():
    one, same, other = Slow({"a": 0, "b": 1}), Slow({"b": 1, "a": 0}), Slow({"a": 1, "b": 0})
    assert tokenizer_sha256(one) == tokenizer_sha256(same) != tokenizer_sha256(other)  # type: ignore[arg-type]


class Processor:
    """What multimodal models come with: a tokenizer is inside of it."""

    def __init__(self) -> None:
        self.tokenizer = pythia_like()


def test_what_is_no_tokenizer_is_refused_with_where_one_is():
    refuse_no_tokenizer(pythia_like())
    for given, kind in (("gpt2", "str"), (None, "NoneType"), (language_model(), "GPT2LMHeadModel")):
        with pytest.raises(TypeError, match=rf"got a {kind}: pass AutoTokenizer\.from_pretrained\(name\)\."):
            refuse_no_tokenizer(given)
    with pytest.raises(TypeError, match="got a Processor: pass its own, tokenizer"):
        refuse_no_tokenizer(Processor())


@pytest.mark.parametrize(
    "call",
    [
        lambda given, folder: TokenBlocks(text_dataset(4), given, context_length=8, batch_size=1),
        lambda given, folder: SAETrainer(language_model(), processing_class=given),
        lambda given, folder: evaluate_sae(*tiny.setting()[:2], ["w1 w2"], given),
        lambda given, folder: self_check(*tiny.setting()[:2], ["w1 w2"], given),
        lambda given, folder: collect_features(*tiny.setting()[:2], given, ["w1 w2"]),
        lambda given, folder: featurize(*tiny.setting()[:2], given, ["w1 w2"], folder / "features.parquet"),
        lambda given, folder: feature_effects(*tiny.setting()[:2], given, "w1 w2"),
        lambda given, folder: next(read_sequences(*tiny.setting()[:2], given, ["w1 w2"])),
        lambda given, folder: contrast(*tiny.setting()[:2], given, ["w1", "w2", "w3"], ["w4", "w5", "w6"]),
        lambda given, folder: export_delphi(*tiny.setting()[:2], given, ["w1 w2"], folder / "delphi"),
        lambda given, folder: steer_model(*tiny.setting()[1::-1], {1: 1.0}, folder / "steered", tokenizer=given),
        lambda given, folder: write_dashboard(collection(), given, folder / "page"),
        lambda given, folder: tokenize("w1", given, prepend_bos=None),
    ],
)
def test_the_name_of_a_tokenizer_is_refused_where_text_is_read(call, tmp_path):
    with pytest.raises(TypeError, match="expected a tokenizer of transformers, got a str"):
        call("gpt2", tmp_path)
    assert not list(tmp_path.iterdir())
