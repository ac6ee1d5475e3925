import pytest

from hfsae import SAE, TopKSAEConfig
from hfsae.saved.info import describe
from tests.data.tiny import language_model


def saved(folder, **options):
    config = TopKSAEConfig(**{"d_in": 16, "n_features": 48, "k": 4, **options})
    SAE.from_config(config).save_pretrained(folder)
    return str(folder)


def test_an_sae_is_described_from_what_its_config_records(tmp_path):
    folder = saved(
        tmp_path,
        hook_point="transformer.h.8.output",
        base_model="openai-community/gpt2",
        base_model_revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        base_model_adapter="org/lora",
        training={"n_tokens": 1_500_000, "dataset": "python-stdlib"},
        metrics={"l0": 32.0, "explained_variance": 0.81234567, "loss_recovered": None, "dead_fraction": 0.0},
    )
    assert describe(folder).splitlines() == [
        "architecture  topk",
        "features      48 (3x of d_in = 16)",
        "reads         transformer.h.8.output",
        "of            openai-community/gpt2 @ 607a30d783df with the adapter org/lora",
        "trained on    1,500,000 tokens of python-stdlib",
        "measured      l0 32, explained_variance 0.8123, dead_fraction 0",
    ]


def test_what_was_not_recorded_is_said_to_be_missing(tmp_path):
    assert describe(saved(tmp_path)).splitlines()[2:] == [
        "reads         not recorded",
        "of            not recorded",
        "measured      not yet: `hfsae eval`",
    ]


def test_text_without_a_name_is_not_given_one(tmp_path):
    folder = saved(tmp_path, training={"n_tokens": 1000, "dataset": None}, metrics={"l0": None})
    assert describe(folder).splitlines()[-2:] == [
        "trained on    1,000 tokens of text that was given as an object",
        "measured      not yet: `hfsae eval`",
    ]


def test_a_transcoder_tells_where_it_writes(tmp_path):
    places = {"hook_point": "h.1.mlp.input", "target_hook_point": "h.1.mlp.output"}
    assert "writes        h.1.mlp.output (d_out = 16)" in describe(saved(tmp_path, **places)).splitlines()


def test_no_weights_are_needed(tmp_path):
    folder = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert describe(folder).startswith("architecture  topk")


def test_an_sae_in_a_folder_of_a_repository_is_described(tmp_path):
    saved(tmp_path / "layer-1", hook_point="h.1.output")
    assert "reads         h.1.output" in describe(str(tmp_path), subfolder="layer-1")


def test_another_model_and_nothing_at_all_are_refused(tmp_path):
    language_model().save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match="holds a 'gpt2' model, not a sparse autoencoder"):
        describe(str(tmp_path / "lm"))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        describe(str(tmp_path / "nowhere"))
