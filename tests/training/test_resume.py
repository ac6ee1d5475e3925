"""A run that is stopped and resumed ends equal, bit for bit, to one that was not."""

import json
import random

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, GatedSAEConfig, TopKSAEConfig
from hfsae.training.checkpoint import last_checkpoint
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import ARCHITECTURES, BATCH, At, contents, sparse_rows, stop_at, text, trainer

STEPS = 12
# Stopped before its end, so that no run spends its time on a card.
WHOLE = {"steps": STEPS + 1}


def checkpoint(tmp_path, name, step=STEPS):
    return contents(tmp_path / name / f"checkpoint-{step}")


def run_whole_and_in_two(tmp_path, stop, make_inputs=lambda: None, **options):
    """The last checkpoints of a run without a break and of one that was stopped and resumed by a new trainer."""
    options = {**WHOLE, **options}
    trainer(tmp_path / "whole", inputs=make_inputs(), callbacks=[stop_at(STEPS)], **options).train()
    trainer(tmp_path / "broken", inputs=make_inputs(), callbacks=[stop_at(stop)], **options).train()
    resumed = trainer(tmp_path / "broken", inputs=make_inputs(), callbacks=[stop_at(STEPS)], **options)
    assert resumed.train(resume_from_checkpoint=True).steps == STEPS
    return checkpoint(tmp_path, "whole"), checkpoint(tmp_path, "broken")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_goes_on_bit_by_bit_while_features_are_revived(tmp_path, architecture):
    options = {"dead_feature_window": 40, "resample_every": 2 * BATCH, "shuffle_window_tokens": 3 * BATCH}
    stop = random.Random(architecture).randrange(1, STEPS)
    whole, broken = run_whole_and_in_two(tmp_path, stop, architecture=architecture, **options)
    assert whole == broken and len(whole) == 5


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize("revival", ["auxk", "resample"])
def test_a_revival_that_is_not_the_default_goes_on_too(tmp_path, revival, stop):
    options = {"architecture": "standard" if revival == "auxk" else "topk", "revival": revival}
    whole, broken = run_whole_and_in_two(tmp_path, stop, dead_feature_window=40, resample_every=BATCH, **options)
    assert whole == broken


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3},
        {"prefetch_batches": 0},
        {"shuffle_window_tokens": 0},
        {"shuffle_documents": False},
        {"bf16": True},
        {"activation_dtype": "float32", "lr_scheduler_type": "cosine"},
        {"hook_point": "resid_post.0, mlp_out.1"},
        {"architecture_options": {"prefix_balance": 0.75, "orthogonality": 0.1}, "architecture": "matryoshka"},
        {"architecture_options": {"frequency_scale": 0.05}, "architecture": "jumprelu"},
        {"architecture_options": {"aligned": True}, "dead_feature_window": 40},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_run_goes_on_bit_by_bit_whatever_it_was_told(tmp_path, options):
    whole, broken = run_whole_and_in_two(tmp_path, 5, **options)
    assert whole == broken


def streaming():
    return {"train_dataset": text().to_iterable_dataset(num_shards=3), "processing_class": pythia_like()}


def few_documents():
    """So little text that it is read several times over."""
    return {"train_dataset": text(60), "processing_class": pythia_like()}


def two_saes():
    saes = {
        "a": TopKSAEConfig(d_in=16, n_features=64, k=3, hook_point="resid_post.0"),
        "b": GatedSAEConfig(d_in=16, n_features=32, hook_point="mlp_out.1"),
    }
    return {"saes": saes}


def tensor():
    return {"activations": sparse_rows(200)}


def batches():
    return {"activations": [sparse_rows(50, seed=i) for i in range(9)]}


def generator():
    return {"activations": (sparse_rows(50, seed=i) for i in range(20))}


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("make_inputs", [streaming, few_documents, two_saes, tensor, batches, generator])
def test_a_run_goes_on_bit_by_bit_whatever_it_reads(tmp_path, make_inputs, stop):
    whole, broken = run_whole_and_in_two(tmp_path, stop, make_inputs)
    assert whole == broken


def test_an_older_checkpoint_can_be_gone_on_from_and_the_steps_after_it_come_again(tmp_path):
    options = {**WHOLE, "save_steps": 4, "save_total_limit": None}
    trainer(tmp_path / "run", callbacks=[stop_at(STEPS)], **options).train()
    first = {step: checkpoint(tmp_path, "run", step) for step in (4, 8, 12)}
    again = trainer(tmp_path / "run", callbacks=[stop_at(STEPS)], **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert first == {step: checkpoint(tmp_path, "run", step) for step in (4, 8, 12)}


def test_a_checkpoint_can_be_gone_on_from_in_another_folder(tmp_path):
    trainer(tmp_path / "first", callbacks=[stop_at(5)], **WHOLE).train()
    place = str(tmp_path / "first" / "checkpoint-5")
    trainer(tmp_path / "second", callbacks=[stop_at(STEPS)], resume_from_checkpoint=place, **WHOLE).train()
    trainer(tmp_path / "whole", callbacks=[stop_at(STEPS)], **WHOLE).train()
    assert checkpoint(tmp_path, "second") == checkpoint(tmp_path, "whole")
    with pytest.raises(FileExistsError, match="holds another run"):
        trainer(tmp_path / "second", resume_from_checkpoint=place, **WHOLE).train()


def test_the_log_and_the_clock_go_on(tmp_path):
    options = {**WHOLE, "logging_steps": 2}
    before = trainer(tmp_path, callbacks=[stop_at(6)], **options).train()
    after = trainer(tmp_path, callbacks=[stop_at(10)], **options).train(resume_from_checkpoint=True)
    assert after.log_history[:3] == before.log_history
    assert [entry["step"] for entry in after.log_history] == [2, 4, 6, 8, 10]


def test_other_arguments_than_those_of_the_run_are_refused_by_name(tmp_path):
    trainer(tmp_path, callbacks=[stop_at(2)], **WHOLE).train()
    with pytest.raises(ValueError, match="k was 4 and is 5.*seed was 0 and is 1"):
        trainer(tmp_path, k=5, seed=1, **WHOLE).train(resume_from_checkpoint=True)
    stopped = trainer(tmp_path, logging_steps=1, save_steps=3, callbacks=[stop_at(4)], **WHOLE)
    assert stopped.train(resume_from_checkpoint=True).steps == 4


def file_of(path, documents):
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_of_text_that_was_changed_is_refused(tmp_path, streaming):
    """It was gone on from as if nothing had happened, at a place that meant another text."""
    documents = text()["text"]
    file_of(tmp_path / "text.jsonl", documents)
    inputs = {"train_dataset": None}
    options = {**WHOLE, "dataset_name": str(tmp_path / "text.jsonl"), "streaming": streaming}
    trainer(tmp_path / "run", inputs=inputs, callbacks=[stop_at(2)], **options).train()
    for other in (documents[1:], [*documents[:3], "w1 w2 w3", *documents[4:]] if streaming else documents[:-1]):
        file_of(tmp_path / "text.jsonl", other)
        with pytest.raises(ValueError, match="the text of checkpoint-2 changed since"):
            trainer(tmp_path / "run", inputs=inputs, **options).train(resume_from_checkpoint=True)
    file_of(tmp_path / "text.jsonl", documents)
    again = trainer(tmp_path / "run", inputs=inputs, callbacks=[stop_at(4)], **options)
    assert again.train(resume_from_checkpoint=True).steps == 4


def test_a_dataset_whose_branch_moved_is_gone_on_from_at_its_commit(hub, tmp_path):
    inputs, options = {"train_dataset": None}, {**WHOLE, "dataset_name": "tester/texts"}
    text().push_to_hub("tester/texts", split="train")
    trainer(tmp_path, inputs=inputs, callbacks=[stop_at(2)], **options).train()
    commit = HfApi().dataset_info("tester/texts").sha
    text(299).push_to_hub("tester/texts", split="train")
    with pytest.raises(ValueError, match=f"was at commit {commit} and .*pass dataset_revision='{commit}'"):
        trainer(tmp_path, inputs=inputs, **options).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, inputs=inputs, dataset_revision=commit, callbacks=[stop_at(4)], **options)
    assert again.train(resume_from_checkpoint=True).steps == 4


def test_a_language_model_whose_branch_moved_is_gone_on_with_at_its_commit(hub, tmp_path):
    model, options = language_model(), {**WHOLE, "model_name_or_path": "tester/lm"}
    inputs = {"model": None}
    model.push_to_hub("tester/lm")
    pythia_like().push_to_hub("tester/lm")
    trainer(tmp_path, inputs=inputs, callbacks=[stop_at(2)], **options).train()
    commit = HfApi().model_info("tester/lm").sha
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.02)
    model.push_to_hub("tester/lm")
    with pytest.raises(ValueError, match="the language model of checkpoint-2 changed since"):
        trainer(tmp_path, inputs=inputs, **options).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, inputs=inputs, model_revision=commit, callbacks=[stop_at(4)], **options)
    assert again.train(resume_from_checkpoint=True).steps == 4


def test_a_language_model_and_activations_that_were_changed_are_refused(tmp_path):
    trainer(tmp_path / "text", callbacks=[stop_at(2)], **WHOLE).train()
    model = language_model()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1.02)
    with pytest.raises(ValueError, match="the language model of checkpoint-2 changed since"):
        trainer(tmp_path / "text", inputs={"model": model}, **WHOLE).train(resume_from_checkpoint=True)
    trainer(tmp_path / "rows", inputs=tensor(), callbacks=[stop_at(2)], **WHOLE).train()
    other = {"activations": sparse_rows(200, seed=1)}
    with pytest.raises(ValueError, match="the activations of checkpoint-2 changed since"):
        trainer(tmp_path / "rows", inputs=other, **WHOLE).train(resume_from_checkpoint=True)


def test_other_saes_than_those_of_the_run_are_refused(tmp_path):
    config = TopKSAEConfig(d_in=16, n_features=64, k=3)
    trainer(tmp_path, inputs={"saes": {"a": config}}, callbacks=[stop_at(2)], **WHOLE).train()
    with pytest.raises(ValueError, match=r"holds the SAEs \['a'\] and this run trains \['b'\]"):
        trainer(tmp_path, inputs={"saes": {"b": config}}, **WHOLE).train(resume_from_checkpoint=True)
    other = TopKSAEConfig(d_in=16, n_features=64, k=4)
    with pytest.raises(ValueError, match="SAE 'a' of the checkpoint is another one: k was 3 and is 4"):
        trainer(tmp_path, inputs={"saes": {"a": other}}, **WHOLE).train(resume_from_checkpoint=True)


def test_nothing_to_resume_from_is_an_error_before_anything_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        trainer(tmp_path, inputs={"model": "no/such-model"}, **WHOLE).train(resume_from_checkpoint=True)


def test_a_run_that_was_complete_is_finished_again_without_a_step(tmp_path):
    first = trainer(tmp_path, steps=2).train()
    again = trainer(tmp_path, steps=2).train(resume_from_checkpoint=True)
    assert again.completed and again.steps == first.steps == 2


# -- on another number of processes (runs of two processes: test_processes.py) ----------------------------------------
def as_if_by_two_processes(folder):
    """Rewrites a checkpoint's run.json as two processes would have written it."""
    path = last_checkpoint(folder) / "run.json"
    stored = json.loads(path.read_text())
    stored |= {"processes": 2, "tokens": 2 * stored["tokens"]}
    for entry in stored["log_history"]:
        entry["tokens"] *= 2
    path.write_text(json.dumps(stored))
    path.with_name("SHA256SUMS").unlink()


def test_steps_are_converted_by_tokens_and_the_text_comes_in_another_order(tmp_path):
    options = {**WHOLE, "save_steps": 2, "save_total_limit": 1, "logging_steps": 1}
    trainer(tmp_path, callbacks=[stop_at(4)], **options).train()
    weights = SAE.from_pretrained(tmp_path / "checkpoint-4" / "saes").W_dec
    as_if_by_two_processes(tmp_path)
    seen = {}
    note = At(9, lambda saes, **_: seen.update(W_dec=saes[""].W_dec.detach().clone()))
    output = trainer(tmp_path, callbacks=[note, stop_at(10)], **options).train(resume_from_checkpoint=True)
    assert output.steps == 10 and [entry["step"] for entry in output.log_history] == [2, 4, 6, 8, 9, 10]
    assert [entry["tokens"] for entry in output.log_history] == [BATCH * e["step"] for e in output.log_history]
    assert 0 < (seen["W_dec"] - weights).norm() < 0.5 * weights.norm()
    stored = json.loads((last_checkpoint(tmp_path) / "run.json").read_text())
    assert (stored["processes"], stored["step"], stored["text_seed"]) == (1, 10, 1)
    again = trainer(tmp_path, callbacks=[stop_at(11)], **options).train(resume_from_checkpoint=True)
    assert again.steps == 11 and json.loads((tmp_path / "checkpoint-11" / "run.json").read_text())["text_seed"] == 1


def test_the_newest_checkpoint_is_the_one_with_most_tokens(tmp_path):
    for step, tokens in ((200, 6400), (101, 6464)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "run.json").write_text(json.dumps({"tokens": tokens}))
    assert last_checkpoint(tmp_path).name == "checkpoint-101"


def test_what_cannot_be_shared_out_anew_wants_as_many_processes(tmp_path):
    inputs = {"activations": sparse_rows(2000)}
    trainer(tmp_path, inputs=inputs, callbacks=[stop_at(2)], **WHOLE).train()
    as_if_by_two_processes(tmp_path)
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1: only text"):
        trainer(tmp_path, inputs=inputs, **WHOLE).train(resume_from_checkpoint=True)
