"""Whatever lies in a file, hfsae ends in an error of its own that says so, soon, and without filling the memory.

Run more with `pytest tests/fuzz --mutations 100000`; a failure names its case, which is the seed.
"""

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file

from hfsae import SAE, TopKSAEConfig, export_sae
from hfsae.arguments.config_file import arguments_from
from hfsae.data import CachedActivations, NonFiniteActivationsError, TensorActivations, write_cache
from hfsae.hub.card import read_card, render_card
from hfsae.label_file import read_labels, write_labels
from hfsae.loading import load_config
from tests.fuzz.mutations import Mutator, mutated_bytes, mutated_json, mutated_tensors, mutated_values

# What the docs say: of files OSError, of what they say ValueError; a config's field names itself.
OURS = (OSError, ValueError, StrictDataclassError, NonFiniteActivationsError)
SECONDS = 20
MORE_MEMORY = 2 << 30


class TooSlowError(BaseException):
    """Not one that anybody catches."""


@contextmanager
def limited() -> Iterator[None]:
    """No call may take long, or much more memory than there is in use."""

    def late(*_: Any) -> None:
        raise TooSlowError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def sae() -> SAE:
    config = TopKSAEConfig(
        d_in=8, n_features=32, k=4, hook_point="transformer.h.1.output", base_model="openai-community/gpt2"
    )
    config.training = {"dataset": "org/text", "tokens": 1000, "versions": {"torch": "2.13"}, "arguments": {"seed": 0}}
    config.metrics = {"mse": 1.5, "l0": 4.0, "protocol": {"tokens": 100, "dataset": "org/text", "split": "train"}}
    torch.manual_seed(0)
    return SAE.from_config(config)


def saved(folder: Path) -> None:
    sae().save_pretrained(folder)
    (folder / "SHA256SUMS").unlink()  # what is beside a file that a stranger made is the stranger's too


def saelens(folder: Path) -> None:
    export_sae(sae(), folder, "saelens")


def cached(folder: Path) -> None:
    rows = TensorActivations({"a": torch.randn(20, 4)}, chunk_rows=5)
    write_cache(rows, folder, rows=20, shard_rows=8, made_from={"seed": 0}, disable_tqdm=True)
    (folder / "SHA256SUMS").unlink()


def labelled(folder: Path) -> None:
    write_labels(folder / "labels.json", {3: "numbers", 7: "names"}, "0" * 64)


def carded(folder: Path) -> None:
    (folder / "README.md").write_text(str(render_card(sae(), repo_id="org/sae")))


def configured(folder: Path) -> None:
    options = {"dataset_name": "org/text", "training_tokens": 100_000, "k": 4, "saes": None, "learning_rate": 1e-3}
    options |= {"architecture_options": {"multi_topk": True}, "exclude_positions": [0, 1], "streaming": True}
    (folder / "run.yaml").write_text(yaml.safe_dump({key: value for key, value in options.items() if value}))


def mutated_yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return mutated_bytes(content, rng)
    made = json.dumps(mutated_values(yaml.safe_load(content), rng), ensure_ascii=rng.random() < 0.5)  # JSON is YAML
    return made.encode("utf-8", errors="surrogatepass") + b"\n"


def mutated_card(content: bytes, rng: random.Random) -> bytes:
    _, front, text = content.split(b"---\n", 2)
    return b"---\n" + mutated_yaml(front, rng) + b"---\n" + text


def read_cached(folder: Path) -> None:
    source = CachedActivations(folder, repeat=False)
    try:
        for _ in source:
            pass
    finally:
        source.close()


def loaded(folder: Path) -> None:
    SAE.from_pretrained(folder)


# What makes a whole folder, which of its files is changed and how, and what then reads it.
KINDS: dict[str, tuple[Callable[[Path], None], str, Mutator, Callable[[Path], Any]]] = {
    "config": (saved, "config.json", mutated_json, loaded),
    "card of a config": (saved, "config.json", mutated_json, lambda folder: render_card(load_config(folder))),
    "foreign config": (saelens, "cfg.json", mutated_json, loaded),
    "weights": (saved, "model.safetensors", mutated_tensors, loaded),
    "foreign weights": (saelens, "sae_weights.safetensors", mutated_tensors, loaded),
    "card": (
        *(carded, "README.md", mutated_card),
        lambda folder: render_card(sae(), repo_id="org/sae", existing=read_card(folder / "README.md")),
    ),
    "run": (configured, "run.yaml", mutated_yaml, lambda folder: arguments_from({"config": str(folder / "run.yaml")})),
    "cache": (cached, "cache.json", mutated_json, read_cached),
    "shard": (cached, "rows-00001.safetensors", mutated_tensors, read_cached),
    "labels": (labelled, "labels.json", mutated_json, lambda folder: read_labels(folder / "labels.json", "0" * 64)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_mutation_is_read_or_refused_in_our_own_words(kind: str, tmp_path: Path, pytestconfig):
    make, name, mutate, read = KINDS[kind]
    make(tmp_path)
    read(tmp_path)
    whole = (tmp_path / name).read_bytes()
    faults, refused = [], 0
    cases = max(1, pytestconfig.getoption("--mutations") // len(KINDS))
    for case in range(cases):
        (tmp_path / name).write_bytes(mutate(whole, random.Random(f"{kind} {case}")))
        try:
            with limited():
                read(tmp_path)
        except OURS as error:
            refused += 1
            if not str(error).strip():
                faults.append(f"{case}: {type(error).__name__} without a word")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            faults.append(f"{case}: {type(error).__name__}: {str(error)[:200]}")
    assert not faults, f"{len(faults)} of {cases}:\n" + "\n".join(faults[:20])
    assert refused > cases // 10, "mutations that change nothing show nothing"


def test_a_case_is_the_same_every_time():
    first, second = (mutated_json(b'{"a": [1, 2, {"b": 3}]}', random.Random("x")) for _ in range(2))
    assert first == second


def test_a_mutated_file_of_weights_that_loads_holds_finite_weights(tmp_path: Path, pytestconfig):
    """Nothing that was changed into NaN or infinity passes for an SAE."""
    saved(tmp_path)
    whole, passed = (tmp_path / "model.safetensors").read_bytes(), 0
    for case in range(max(1, pytestconfig.getoption("--mutations") // 20)):
        rng = random.Random(f"finite {case}")
        at = len(whole) - 4 * rng.randrange(1, 200)
        value = rng.choice([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", rng.randbytes(4)])
        (tmp_path / "model.safetensors").write_bytes(whole[:at] + value + whole[at + 4 :])
        finite = all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())
        try:
            SAE.from_pretrained(tmp_path)
            passed += 1
            assert finite, case
        except ValueError as error:
            assert "NaN or infinity" in str(error) or "above 0" in str(error), case
    assert passed
