"""Samples that tell one text, model or table from another that bears its name."""

import copy

import torch
from datasets import Dataset

from hfsae.inputs.fingerprints import activations_digest, text_digest, weights_digest
from tests.data.tiny import language_model
from tests.training.tiny import arguments, sparse_rows, text


def test_the_digest_tells_texts_apart_and_is_the_same_for_the_same_text():
    args = arguments("unused")
    ids = torch.arange(40).view(10, 4)
    assert text_digest(args, text()) == text_digest(args, text().select(range(300)))
    assert text_digest(args, text()) != text_digest(args, text().select(range(299)))
    assert text_digest(args, text().to_iterable_dataset()) == text_digest(args, text(256).to_iterable_dataset())
    assert text_digest(args, text().to_iterable_dataset()) != text_digest(args, text(255).to_iterable_dataset())
    assert text_digest(args, ids) != text_digest(args, ids + 1)


def test_documents_of_tensors_have_a_digest_too():
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]]}).with_format("torch")
    assert text_digest(arguments("unused"), rows) == text_digest(arguments("unused"), rows)
    assert text_digest(arguments("unused"), rows) != text_digest(arguments("unused"), rows.select([1, 0]))


def test_a_model_is_known_again_in_another_precision_and_told_from_one_that_was_trained_on():
    model = language_model()
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model).to(torch.bfloat16)) == digest == weights_digest(language_model())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight.mul_(1.02)
    assert weights_digest(other) != digest
    assert weights_digest(model.to("meta")) is None


def test_tables_are_told_apart_and_what_is_no_table_has_no_digest():
    rows = sparse_rows(600)
    assert (
        activations_digest({"a": rows})
        == activations_digest({"a": rows.numpy()})
        == activations_digest({"a": rows * 1})
    )
    for other in ({"b": rows}, {"a": rows[:599]}, {"a": rows + 1}):
        assert activations_digest(other) != activations_digest({"a": rows})
    assert activations_digest([rows]) is None
