"""Other clients of the Hub, some in processes of their own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.hub_server import HubServer
from tests.test_hub_server.common import CARD, REPO, put


def test_transformers_loads_a_config(api: HfApi):
    from transformers import AutoConfig, GPT2Config

    put(api, {"small/config.json": GPT2Config(n_layer=3).to_json_string().encode()})
    config = AutoConfig.from_pretrained(REPO, subfolder="small")
    assert isinstance(config, GPT2Config) and config.n_layer == 3


@pytest.fixture
def hf(hub: HubServer) -> Callable[..., str]:
    """The `hf` command in a process of its own."""

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("hf")), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    return run


@pytest.mark.slow
def test_the_hf_command_logs_in_uploads_and_downloads(hub: HubServer, hf: Callable[..., str], tmp_path: Path):
    assert "tester" in hf("auth", "whoami")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "README.md").write_bytes(CARD)
    (source / "w.safetensors").write_bytes(b"weights")
    hf("upload", REPO, str(source))
    assert hub.repo(REPO).files() == {"README.md": CARD, "w.safetensors": b"weights"}
    hf("download", REPO, "w.safetensors", "--local-dir", str(target))
    assert (target / "w.safetensors").read_bytes() == b"weights"
    hf("upload", REPO, str(source), "copy", "--create-pr")
    assert "copy/w.safetensors" in hub.repo(REPO).files("refs/pr/1")


@pytest.mark.slow
def test_a_dataset_is_pushed_and_loaded(hub: HubServer):
    from datasets import Dataset, load_dataset

    dataset = Dataset.from_dict({"text": ["one", "two", "three"]})
    dataset.push_to_hub("tester/texts")
    assert load_dataset("tester/texts", split="train").to_list() == dataset.to_list()
    streamed = load_dataset("tester/texts", split="train", streaming=True)
    assert list(streamed) == dataset.to_list()
