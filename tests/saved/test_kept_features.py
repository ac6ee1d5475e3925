"""The SAEs of a folder or of a set, opened together with one language model."""

import shutil
from pathlib import Path

import pytest

from hfsae import SAE
from hfsae.interop.formats import UnknownFormatError
from hfsae.saved.kept_features import saved_features
from hfsae.saving import write_config


def test_a_set_is_opened_with_one_language_model(trained_set):
    opened = saved_features(trained_set)
    assert list(opened) == ["mlp_in.2", "mlp_in.3"]
    first, second = opened.values()
    assert first.model is second.model and first.tokenizer is second.tokenizer
    assert first.identity.weights_sha256 != second.identity.weights_sha256
    assert list(saved_features(trained_set, subfolder="mlp_in.3")) == ["mlp_in.3"]


def test_an_sae_that_lies_in_the_folder_itself_has_no_name(trained_folder):
    (name, opened), *others = saved_features(trained_folder).items()
    assert name == "" and not others and opened.folder == Path(trained_folder)


def test_a_set_that_lacks_an_sae_is_refused(trained_set, tmp_path):
    copy = shutil.copytree(trained_set, tmp_path / "set")
    shutil.rmtree(copy / "mlp_in.2")
    with pytest.raises(FileNotFoundError, match="lacks SAEs of its set: mlp_in.2"):
        saved_features(copy)


def test_saes_of_several_language_models_are_refused(trained_set, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(trained_set / "mlp_in.2", tmp_path / name)
    config = SAE.from_pretrained(tmp_path / "b").config
    config.base_model = "tester/other"
    write_config(config, tmp_path / "b")
    with pytest.raises(ValueError, match="several language models .*: name one with subfolder"):
        saved_features(tmp_path)
    assert list(saved_features(tmp_path, subfolder="b")) == ["b"]


def test_a_folder_without_saes_is_refused(tmp_path):
    with pytest.raises(UnknownFormatError, match="holds no sparse autoencoder"):
        saved_features(tmp_path)
