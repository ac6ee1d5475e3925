"""The script that trains the tiny language model, run on a miniature library."""

import math
import re
import shutil
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from examples import make_tiny_lm
from hfsae.data.stdlib_text import stdlib_digest, stdlib_documents
from tests.examples.tiny_lm_measures import card_row, longhand_cross_entropy, token_ids

SMALL = "--vocab_size 400 --width 16 --layers 1 --heads 2 --context 32 --tokens 4000 --save_steps 10".split()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory):
    """A standard library of a few real modules, in both splits."""
    real = Path(sysconfig.get_paths()["stdlib"])
    small = tmp_path_factory.mktemp("library")
    for package in ("json", "logging", "html"):
        shutil.copytree(real / package, small / package, ignore=shutil.ignore_patterns("__pycache__"))
    paths = sysconfig.get_paths() | {"stdlib": str(small)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_paths", lambda: paths)
        yield small


@pytest.fixture(scope="module")
def small_run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that the script has just trained."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "small_lm"
    make_tiny_lm.main([*SMALL, "--output_dir", str(folder)])
    return folder


@pytest.mark.slow
def test_the_card_of_a_new_model_states_what_a_longhand_measurement_finds(small_run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_run)
    train, held_out = token_ids(small_run, "train"), token_ids(small_run, "held_out")
    model_nats, predicted = longhand_cross_entropy(model, held_out)
    counts = Counter(train)
    unigram_nats = (
        -sum(math.log((counts[token] + 1) / (len(train) + 400)) for token in held_out[1 : predicted + 1]) / predicted
    )
    n_bytes = sum(len(document["text"].encode()) for document in stdlib_documents("held_out"))
    for name, nats in (
        ("this model", model_nats),
        ("unigram frequencies of the train split", unigram_nats),
        ("uniform over the vocabulary", math.log(400)),
    ):
        bits = nats / math.log(2) * len(held_out) / n_bytes
        assert card_row(small_run, name) == pytest.approx((nats, bits), abs=1e-4)


def test_the_card_names_the_data_it_was_trained_on(small_run: Path) -> None:
    text = (small_run / "README.md").read_text()
    assert stdlib_digest("train") in text and stdlib_digest("held_out") in text
    assert f"| train | {len(token_ids(small_run, 'train')):,} |" in text
    assert f"| held out | {len(token_ids(small_run, 'held_out')):,} |" in text


def test_the_card_shows_the_sample_that_the_saved_model_draws(small_run: Path) -> None:
    model, tokenizer = GPT2LMHeadModel.from_pretrained(small_run), AutoTokenizer.from_pretrained(small_run)
    sample = make_tiny_lm.draw_sample(model, tokenizer, seed=0)
    assert sample.startswith(make_tiny_lm.PROMPT) and len(sample) > len(make_tiny_lm.PROMPT)
    assert sample in (small_run / "README.md").read_text()


def test_even_a_short_training_beats_chance(small_run: Path) -> None:
    assert card_row(small_run, "this model")[0] < card_row(small_run, "uniform over the vocabulary")[0] - 0.1


def test_saving_leaves_nothing_beside_the_model(small_run: Path) -> None:
    assert [path.name for path in small_run.parent.iterdir()] == [small_run.name]


@pytest.mark.slow
def test_the_seed_decides_the_weights_and_saving_on_the_way_does_not(small_run: Path, tmp_path: Path) -> None:
    weights = [(small_run / "model.safetensors").read_bytes()]
    for name, extra in (("unsaved", ["--save_steps", "1000"]), ("other", ["--seed", "1"])):
        make_tiny_lm.main([*SMALL, *extra, "--output_dir", str(tmp_path / name)])
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_state_is_saved_on_the_way_and_at_the_end(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_lm.main([*SMALL, "--output_dir", str(tmp_path / "lm")])
    assert re.findall(r"after ([\d,]+) tokens", capsys.readouterr().out) == ["2,560", "4,096"]


def test_a_pass_over_the_stream_sees_every_window_once() -> None:
    torch.manual_seed(0)
    passes = make_tiny_lm.batches(torch.arange(1000), context=10, batch_size=7)
    windows = torch.cat([next(passes) for _ in range(15)])
    assert torch.equal(windows, windows[:, :1] + torch.arange(11))
    starts = windows[:, 0].sort().values
    assert torch.equal(starts, starts[0] + 10 * torch.arange(len(starts)))
