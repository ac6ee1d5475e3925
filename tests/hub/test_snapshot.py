"""What was loaded once loads by every name without a network."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, list_saes, load_saes, push_saes
from tests.hub.conftest import make
from tests.hub_server.repository import Commit

ZOO = "tester/zoo"

LOAD_EVERYTHING = f"""
from hfsae import SAE, list_saes, load_saes
print([entry.name for entry in list_saes({ZOO!r})], list(load_saes({ZOO!r}, "a*")))
print(SAE.from_pretrained({ZOO!r}, subfolder="a.1").config.k)
"""


@pytest.fixture
def zoo(hub):
    push_saes({"a.1": make(), "a.2": make(seed=1), "b": make(seed=2)}, ZOO)
    return hub


@pytest.mark.parametrize("revision", [None, "wide", "v1"])
def test_after_load_saes_everything_loads_without_a_network(zoo, revision):
    HfApi().create_branch(ZOO, branch="wide")
    HfApi().create_tag(ZOO, tag="v1")
    loaded = load_saes(ZOO, "a*", revision=revision)
    with zoo.down():
        again = load_saes(ZOO, "a*", revision=revision)
        assert again.keys() == loaded.keys() == {"a.1", "a.2"}
        assert [entry.name for entry in list_saes(ZOO, revision=revision)] == ["a.1", "a.2"]
        alone = SAE.from_pretrained(ZOO, subfolder="a.2", revision=revision)
    assert torch.equal(alone.W_dec, loaded["a.2"].W_dec) and torch.equal(again["a.2"].W_dec, loaded["a.2"].W_dec)


def test_with_the_switch_for_offline_use_too(zoo):
    load_saes(ZOO, "a*")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", LOAD_EVERYTHING], env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["['a.1', 'a.2'] ['a.1', 'a.2']", "4"], run.stderr


def test_with_a_cache_of_ones_own_too(zoo, tmp_path):
    load_saes(ZOO, "b", cache_dir=tmp_path)
    with zoo.down():
        assert list(load_saes(ZOO, cache_dir=tmp_path)) == ["b"]
        assert list(load_saes(ZOO, cache_dir=tmp_path, local_files_only=True)) == ["b"]
        with pytest.raises(OSError, match="Nothing of tester/zoo is in the cache"):
            load_saes(ZOO)


def test_a_branch_that_moves_while_it_is_being_looked_at_is_loaded_and_remembered_at_one_commit(zoo):
    """Somebody pushes between the first request and the next."""

    push_saes({"a.1": make(seed=7)}, ZOO, revision="next")
    repo = zoo.repo(ZOO)
    before, after = repo.resolve("main"), repo.resolve("next")

    def push(request) -> bool:
        if request.method == "HEAD" and repo.resolve("main") is before:
            repo.add_commit("refs/heads/main", Commit(after.files, "theirs", "tester", "", before.oid))
        return False

    zoo.fail(push, times=None)
    loaded = load_saes(ZOO, "a*")
    assert repo.resolve("main") is not before and torch.equal(loaded["a.1"].W_dec, make(seed=7).W_dec)
    with zoo.down():
        assert torch.equal(SAE.from_pretrained(ZOO, subfolder="a.1").W_dec, loaded["a.1"].W_dec)


def test_a_cache_that_was_emptied_says_so(zoo):
    from huggingface_hub.constants import HF_HUB_CACHE

    load_saes(ZOO)
    shutil.rmtree(HF_HUB_CACHE)
    with zoo.down(), pytest.raises(OSError, match="the Hub cannot be reached.*Nothing of tester/zoo is in the cache"):
        list_saes(ZOO)
