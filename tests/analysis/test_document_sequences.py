import pytest
import torch
from datasets import Dataset

from hfsae import TopKSAEConfig
from hfsae.analysis.document_sequences import DocumentSequenceReader
from tests.data.tiny import chat_tokenizer, documents, language_model, llama_like, pythia_like


def config(**fields) -> TopKSAEConfig:
    return TopKSAEConfig(d_in=16, n_features=32, context_length=5, **fields)


def read(data, *, given=None, tokenizer=None, batch_size=3, **options) -> dict[tuple[int, int], list[int]]:
    """Token ids by document and start."""
    reader = DocumentSequenceReader(
        given or config(), language_model(), tokenizer or pythia_like(), batch_size=batch_size
    )
    found = {}
    for pieces in reader.batches(data, **options):
        ids, mask, _ = pieces.tokens
        for row, length in enumerate(mask.sum(1).tolist()):
            found[int(pieces.documents[row]), int(pieces.starts[row])] = ids[row, :length].tolist()
    return found


def test_every_document_is_cut_into_pieces_of_its_own():
    assert read(documents(7, 0, 3)) == {(0, 0): [1, 2, 3, 4, 5], (0, 5): [6, 7], (2, 0): [8, 9, 10]}


def test_each_piece_begins_with_bos_where_the_sae_was_trained_so():
    assert read(documents(6), tokenizer=llama_like()) == {(0, -1): [0, 2, 3, 4, 5], (0, 3): [0, 6, 7]}
    assert read(documents(6), tokenizer=llama_like(), given=config(prepend_bos=False)).keys() == {(0, 0), (0, 5)}


def test_token_ids_are_taken_as_they_are():
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9, 0]], "attention_mask": [[1, 1, 1], [1, 1, 0]]})
    assert read(rows) == {(0, 0): [5, 6, 7], (1, 0): [8, 9]}


def test_processes_share_the_documents_and_leave_none_out():
    data = documents(*range(1, 9))
    parts = [read(data, rank=rank, world_size=3) for rank in range(3)]
    assert {key: ids for part in parts for key, ids in part.items()} == read(data)
    assert sum(map(len, parts)) == len(read(data))


def test_left_out_tokens_are_those_of_the_config():
    ids = Dataset.from_dict({"input_ids": [[4, 0, 5, 6], [7, 8, 9]]})
    for special in (True, False):
        given = config(exclude_special_tokens=special, exclude_positions=[0, 2])
        (pieces,) = DocumentSequenceReader(given, language_model(), pythia_like()).batches(ids)
        assert pieces.tokens.keep.tolist() == [[False, not special, False, True], [False, True, False, False]]
        assert torch.equal(pieces.documents, torch.tensor([0, 1]))


def test_the_places_of_images_in_the_texts_of_a_multimodal_model_are_left_out():
    ids, model = Dataset.from_dict({"input_ids": [[4, 8, 5, 6]]}), language_model()
    model.config.image_token_id = 8
    (pieces,) = DocumentSequenceReader(config(exclude_positions=[]), model, pythia_like()).batches(ids)
    assert pieces.tokens.keep.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("data", ["one text", {"text": ["a"]}, [1, 2], 3])
def test_what_is_no_list_of_texts_is_refused(data):
    with pytest.raises(TypeError, match="expected a (list of )?text"):
        read(data)


def test_a_foreign_token_and_a_context_that_is_too_long_are_refused():
    with pytest.raises(ValueError, match="token id 99, but the language model knows 44"):
        read(Dataset.from_dict({"input_ids": [[99]]}))
    with pytest.raises(ValueError, match="the language model's context is 64"):
        DocumentSequenceReader(config(), language_model(), pythia_like(), context_length=65)


def said(*words):
    return [{"role": "user", "content": "w1"}, {"role": "assistant", "content": " ".join(words)}]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_process_that_is_none_is_refused_before_a_document_is_read(rank: int, world_size: int):
    reader = DocumentSequenceReader(config(), language_model(), pythia_like())
    with pytest.raises(ValueError, match=f"rank is {rank} of world_size={world_size}"):
        reader.batches(documents(7, 0, 3), rank=rank, world_size=world_size)


def test_token_ids_under_any_name_and_with_a_bos_of_their_own_get_no_second_one():
    assert read(Dataset.from_dict({"tokens": [[5, 6, 7]]})) == {(0, 0): [5, 6, 7]}
    given = config(prepend_bos=True)
    ids = Dataset.from_dict({"ids": [[0, 6, 7, 8, 9, 10], [6]]})
    assert read(ids, given=given, tokenizer=llama_like()) == {
        (0, 0): [0, 6, 7, 8, 9], (0, 4): [0, 10], (1, -1): [0, 6],
    }  # fmt: skip


@pytest.mark.parametrize("trained", [{}, {"chat": True}, {"chat": True, "assistant_only": False}])
def test_of_conversations_those_tokens_count_that_counted_in_training(trained):
    given = config(exclude_positions=[], training={"arguments": trained})
    rows = Dataset.from_dict({"messages": [said("w2", "w3")]})
    (pieces,) = DocumentSequenceReader(given, language_model(vocab_size=50), chat_tokenizer()).batches(rows)
    kept = sorted(pieces.tokens.input_ids[pieces.tokens.keep].tolist())
    assert kept == ([5, 6, 7] if trained.get("assistant_only") is False else [6, 7])


def test_rows_without_a_document_are_skipped_and_said(caplog):
    assert read(Dataset.from_dict({"text": ["w1", None, "w2"]})) == {(0, 0): [2], (2, 0): [3]}
    assert "1 rows without a document in 'text' were skipped" in caplog.messages
