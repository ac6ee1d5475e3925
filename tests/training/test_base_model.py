"""The language model of a run, and what its SAEs record of it."""

import pytest
import torch
from huggingface_hub import HfApi

from hfsae.language_model import Origin
from hfsae.training.base_model import BaseModel, open_base_model
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments


def opened(model=None, tokenizer=None, args=None) -> BaseModel:
    return open_base_model(args or arguments("unused"), model, tokenizer, torch.device("cpu"))


def test_a_model_object_is_taken_as_it_is():
    model = language_model()
    loaded = opened(model, pythia_like())
    assert loaded.model is model and loaded.origin is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_is_loaded_from_a_folder_with_its_tokenizer(tmp_path):
    language_model().save_pretrained(tmp_path)
    pythia_like().save_pretrained(tmp_path)
    args = arguments("unused", model_name_or_path=str(tmp_path), model_dtype="bfloat16")
    loaded = opened(args=args)
    assert loaded.tokenizer("w3").input_ids == pythia_like()("w3").input_ids
    assert loaded.origin == Origin(str(tmp_path))
    assert loaded.model.dtype == torch.bfloat16 and not loaded.model.training


def test_a_model_of_the_hub_is_loaded_and_recorded_at_one_commit(hub, tmp_path):
    language_model().save_pretrained(tmp_path)
    pythia_like().save_pretrained(tmp_path)
    HfApi().create_repo("tester/lm")
    first = HfApi().upload_folder(repo_id="tester/lm", folder_path=tmp_path).oid
    later = HfApi().upload_file(path_or_fileobj=b"later", path_in_repo="notes.txt", repo_id="tester/lm").oid
    for revision, commit in ((None, later), ("main", later), (first, first)):
        args = arguments("unused", model_revision=revision)
        loaded = opened("tester/lm", args=args)
        assert loaded.origin == Origin("tester/lm", commit)


def test_a_run_without_a_model_is_refused():
    with pytest.raises(ValueError, match="no language model: give model_name_or_path"):
        opened()
