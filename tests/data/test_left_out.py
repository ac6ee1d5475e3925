import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from hfsae.data.left_out import LeftOut, in_words, placeholder_ids

numbers = st.lists(st.integers(0, 30), max_size=20).map(tuple)


@given(numbers, numbers, st.integers(0, 2**31))
def test_what_counts_is_what_is_neither_padding_nor_special_nor_at_a_position_that_is_left_out(
    special: tuple[int, ...], positions: tuple[int, ...], seed: int
):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 30, (3, 12), generator=generator)
    real = torch.rand(3, 12, generator=generator) > 0.2
    counted = LeftOut(special, positions).counted_in_blocks(real, ids)
    for row in range(3):
        for column in range(12):
            expected = real[row, column] and ids[row, column].item() not in special and column not in positions
            assert counted[row, column] == expected


def test_positions_may_be_given_row_by_row_and_ids_may_be_unknown():
    rule = LeftOut((5,), (0,))
    tokens, positions = torch.ones(2, 3, dtype=torch.bool), torch.tensor([[0, 1, 2], [-1, 0, 1]])
    ids = torch.tensor([[1, 5, 2], [1, 2, 5]])
    assert rule.counted(tokens, ids, positions).tolist() == [[False, False, True], [True, False, False]]
    assert rule.counted(tokens, None, positions).tolist() == [[False, True, True], [True, False, True]]


@pytest.mark.parametrize(
    ("special", "positions", "words"),
    [
        (True, [0], ["special tokens", "position 0 of every block"]),
        (False, [0, 1], ["positions 0, 1 of every block"]),
        (True, [], ["special tokens"]),
        (False, [], []),
    ],
)
def test_what_is_left_out_in_words(special: bool, positions: list[int], words: list[str]):
    assert in_words(special, positions) == words


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        (hf.Idefics3Config(image_token_id=7), [7]),
        (hf.LlavaConfig(image_token_index=8), [8]),
        (hf.Gemma3Config(image_token_index=9, boi_token_index=10, eoi_token_index=11), [9, 10, 11]),
        (
            hf.Qwen2_5_VLConfig(
                image_token_id=12, video_token_id=13, vision_start_token_id=14, vision_end_token_id=16
            ),
            [12, 13, 14, 16],
        ),
        (hf.Qwen2AudioConfig(audio_token_index=15), [15]),
        (hf.LlamaConfig(), []),
        (hf.LlamaConfig(image_token_id=-200), []),  # no id of the vocabulary, as in Llava's first releases
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_the_config_of_a_multimodal_model_tells_where_images_videos_and_sound_stand(config, ids: list[int]):
    """And which tokens stand around them."""
    assert placeholder_ids(config) == ids
