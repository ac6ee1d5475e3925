import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hfsae.data.packing import Packer

NONE = np.zeros((2, 0), dtype=np.int64)
BOS = np.array([[0], [1]])
EOS = np.array([[1], [1]])

# Ids from 2 on, each with its flag; also documents without a token.
documents_of_tokens = st.lists(st.lists(st.tuples(st.integers(2, 50), st.integers(0, 1)), max_size=12), max_size=8)


def as_arrays(documents):
    return [np.array(document, dtype=np.int64).reshape(-1, 2).T for document in documents]


def pack(documents, group=3, **options):
    packer = Packer(**options)
    arrays = as_arrays(documents)
    for start in range(0, len(arrays), group):
        packer.add(arrays[start : start + group])
    packer.flush()
    return packer.blocks


def joined(arrays):
    return np.concatenate([NONE, *arrays], axis=1)


@given(documents_of_tokens, st.integers(2, 9), st.integers(1, 4))
def test_mixed_blocks_hold_the_joined_documents_once_in_order(documents, length, group):
    blocks = pack(documents, group, length=length, bos=NONE, separator=EOS, mix=True)
    expected = joined([part for document in as_arrays(documents) if document.size for part in (document, EOS)])
    assert np.array_equal(joined(blocks), expected)
    assert all(block.shape[1] == length for block in blocks[:-1])


@given(documents_of_tokens, st.integers(2, 9))
def test_mixed_blocks_with_bos_hold_the_same_tokens_behind_one_bos(documents, length):
    blocks = pack(documents, length=length, bos=BOS, separator=EOS, mix=True)
    expected = joined([part for document in as_arrays(documents) if document.size for part in (document, EOS)])
    assert all((block[0] == 0).tolist() == [True] + [False] * (block.shape[1] - 1) for block in blocks)
    assert np.array_equal(joined([block[:, 1:] for block in blocks]), expected)


@given(documents_of_tokens, st.integers(2, 9))
def test_a_block_that_begins_with_bos_gets_no_second_one(documents, length):
    blocks = pack(documents, length=length, bos=BOS, separator=BOS, mix=True)
    assert all(block[0, 0] == 0 for block in blocks)
    assert not any((block[0, :2] == 0).all() for block in blocks if block.shape[1] > 1)


@given(documents_of_tokens, st.integers(2, 9))
def test_separate_blocks_are_the_documents_cut(documents, length):
    blocks = pack(documents, length=length, bos=BOS, separator=NONE, mix=False)
    expected = [document[:, : length - 1] for document in as_arrays(documents) if document.size]
    assert len(blocks) == len(expected)
    assert all(np.array_equal(block[:, 1:], document) for block, document in zip(blocks, expected, strict=True))


@given(documents_of_tokens, documents_of_tokens, st.booleans())
def test_a_saved_packer_goes_on_as_if_nothing_had_happened(before, after, mix):
    options = {"length": 5, "bos": BOS, "separator": EOS, "mix": mix}
    packer, resumed = Packer(**options), Packer(**options)
    packer.add(as_arrays(before))
    resumed.load_state_dict(json.loads(json.dumps(packer.state_dict())))
    for each in (packer, resumed):
        each.add(as_arrays(after))
        each.flush()
    assert [block.tolist() for block in packer.blocks] == [block.tolist() for block in resumed.blocks]
