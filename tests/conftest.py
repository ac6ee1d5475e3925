"""What all tests share: a Hub on loopback, which `huggingface_hub` is pointed at before anything imports it."""

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.hub_server import HubServer

# The same examples in every run; how long one takes says more about the machine than about the code.
settings.register_profile("shared", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

assert "huggingface_hub" not in sys.modules, "huggingface_hub reads HF_ENDPOINT when it is imported: too late now"

HUB = HubServer()
HF_HOME = tempfile.TemporaryDirectory(prefix="hf_home_")
(Path(HF_HOME.name) / ".agent_harnesses.json").write_text("{}")  # fresh, so that no client asks the Hub for it

for variable in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[variable]
os.environ |= {
    "HF_ENDPOINT": HUB.endpoint,
    "HF_TOKEN": HUB.user.write_token,
    "HF_HOME": HF_HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Read when Triton is imported: without a GPU its kernels run on the CPU, one program after the other.
    **({} if shutil.which("nvidia-smi") else {"TRITON_INTERPRET": "1"}),
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutations", type=int, default=2000, help="how many mutated files tests/fuzz tries in all")


LONGEST = (
    "training/test_real_models.py",
    "examples/test_train.py",
    "training/test_processes.py",
    "training/test_cut.py",
    "training/test_killed.py",
    "training/test_repointing.py",
    "examples/test_make_zoo.py",
)
"""Files that take longest. They begin first, so that no worker has one left when the other is done."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts files in the order in which workers are to take them: the longest, then those of most tests."""
    if not hasattr(config, "workerinput"):
        return
    tests_of = Counter(item.path for item in items)
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), -tests_of[item.path]))


def pytest_unconfigure() -> None:
    HUB.stop()
    HF_HOME.cleanup()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub with the account `tester` logged in, and an empty download cache."""
    HUB.reset()
    shutil.rmtree(Path(HF_HOME.name) / "hub", ignore_errors=True)
    yield HUB
    HUB.check()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers in every run, alone or among others."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def accelerate_starts_anew() -> Iterator[None]:
    """Accelerate remembers the device of its first accelerator, a CPU in most tests."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def _train_on_embedded_model(folder: Path, **options: Any) -> Path:
    """A short run on the embedded language model and Python's own text; its folder."""
    from hfsae import SAETrainer, SAETrainingArguments

    short = {"train_batch_tokens": 1024, "init_tokens": 2048, "k": 8, "save_steps": 0, "disable_tqdm": True}
    model = str(Path(__file__).parents[1] / "examples" / "tiny_lm")
    named = {"output_dir": str(folder), "model_name_or_path": model, "dataset_name": "python-stdlib"}
    SAETrainer(args=SAETrainingArguments(**named, **short, **options)).train()  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run on the embedded language model leaves: an SAE, its figures, its card. Not to be written to."""
    return _train_on_embedded_model(
        tmp_path_factory.mktemp("trained"),
        hook_point="resid_post.1",
        architecture="topk",
        n_features=256,
        training_tokens=32_768,
        calibration_tokens=2048,
        eval_tokens=4000,
    )


@pytest.fixture
def published(hub: HubServer, trained_folder) -> HubServer:
    """The trained SAE and its language model, both on the Hub."""
    from huggingface_hub import HfApi

    from hfsae import SAE

    sae = SAE.from_pretrained(trained_folder)
    HfApi().create_repo("tester/tiny-lm")
    HfApi().upload_folder(repo_id="tester/tiny-lm", folder_path=sae.config.base_model)
    sae.config.base_model = "tester/tiny-lm"
    sae.push_to_hub("tester/checked", folder=trained_folder, subfolder="a")
    return hub


@pytest.fixture(scope="session")
def trained_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two transcoders of the embedded language model. Not to be written to."""
    return _train_on_embedded_model(
        tmp_path_factory.mktemp("trained") / "set",
        hook_point="mlp_in.2-3",
        target_hook_point="mlp_out.2-3",
        n_features=64,
        training_tokens=8192,
        calibration_tokens=1024,
        eval_tokens=1000,
        lm_batch_sequences=8,
        html_report=False,
    )
