"""A real chat model of transformers, tiny and random: it talks nonsense, which is what is to be seen through."""

from unittest.mock import patch

import pytest

from hfsae.host_memory import give_freed_memory_back
from hfsae.meaning import LocalChat, label_features
from tests import models_on_disk
from tests.analysis.tiny import setting, texts
from tests.meaning.tiny import collection, explained

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITHOUT_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("chat"), TEMPLATE)


def save(place, template, longest=4096):
    model, tokenizer = models_on_disk.llama(), models_on_disk.tokenizer()
    model.config.max_position_embeddings = longest
    tokenizer.chat_template = template
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def conversations(begun: str = ""):
    asked = [[{"role": "system", "content": "Be short."}, {"role": "user", "content": "def " * n}] for n in (3, 40, 1)]
    return [[*chat, {"role": "assistant", "content": begun}] if begun else chat for chat in asked]


def test_what_each_batch_freed_goes_back_to_the_system(folder):
    """The caches of conversations of many lengths leave holes in the heap: 6 GB of them in an hour."""
    with patch("hfsae.meaning.chat.give_freed_memory_back", wraps=give_freed_memory_back) as given_back:
        dict(LocalChat(str(folder), batch_size=2).answers(conversations(), 2))
    assert given_back.call_count == 2


@pytest.mark.parametrize("begun", ["", "["])
def test_answers_of_a_batch_are_those_of_each_conversation_alone(folder, begun):
    together = dict(LocalChat(str(folder), batch_size=3).answers(conversations(begun), 6))
    alone = LocalChat(str(folder), batch_size=1)
    assert together == {i: dict(alone.answers([chat], 6))[0] for i, chat in enumerate(conversations(begun))}
    assert all(text.startswith(begun) for text in together.values())


def test_the_model_reads_the_template_and_goes_on_where_an_answer_begins(folder):
    chat = LocalChat(str(folder))
    plain, begun = (
        chat._tokenizer.decode(chat._encode([c])["input_ids"][0]) for c in (conversations()[0], conversations("[")[0])
    )
    assert plain == "<system>Be short.\n<user>def def def \n<assistant>"
    assert begun == "<system>Be short.\n<user>def def def \n<assistant>["


def test_a_template_without_a_place_for_a_system_message_gets_it_from_the_user(tmp_path):
    chat = LocalChat(str(save(tmp_path, WITHOUT_SYSTEM)))
    text = chat._tokenizer.decode(chat._encode([conversations()[0]])["input_ids"][0])
    assert text == "<user>Be short.\n\ndef def def \n<assistant>"


def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(tmp_path):
    save(tmp_path, None)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="has no chat template.*-Instruct.*--endpoint"):
        LocalChat(str(tmp_path))


def test_a_prompt_that_does_not_fit_is_refused(tmp_path):
    chat = LocalChat(str(save(tmp_path, TEMPLATE, longest=32)))
    with pytest.raises(ValueError, match="do not fit the context of .*32.*n_shown"):
        dict(chat.answers(conversations(), 10))


def test_a_random_model_says_nothing_that_is_kept(folder):
    run = label_features(
        *setting(),
        texts(60),
        LocalChat(str(folder)),
        collection=collection(),
        features=explained()[:2],
        n_shown=4,
        n_scored=2,
        disable_tqdm=True,
    )
    assert run.answers >= 2 and len(run.nonsense) + len(run.labels) == 2
    # What it did say is scored like anything else: without verdicts there is no score.
    assert all(not one.scores for one in run.labels.values())
