"""Crosscoders in a run: several places of one model, from text, from activations of one's own and from a cache."""

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hfsae import SAE, CrosscoderSAE, CrosscoderSAEConfig, SAETrainer, cache_activations, evaluate_sae
from hfsae.estimate.run_needs import estimate
from hfsae.hooks import capture
from tests.architectures.variants import CROSSCODERS
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import BATCH, D_IN, arguments, contents, sparse_rows, stop_at, text, trainer

JOINED = "resid_post.0+resid_post.2"
CANONICAL = "transformer.h.0.output+transformer.h.2.output"


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("architecture", CROSSCODERS)
def test_a_crosscoder_over_two_places_learns_and_is_saved_with_both(tmp_path: Path, architecture: str):
    output = trainer(tmp_path, hook_point=JOINED, architecture=architecture, steps=40, learning_rate=3e-3).train()
    loaded = SAE.from_pretrained(tmp_path)
    assert loaded.config.hook_point == CANONICAL and loaded.config.source_names == ["resid_post.0", "resid_post.2"]
    model, ids = language_model(), pythia_like()(text()["text"][:20], return_tensors="pt")["input_ids"][:, :12]
    with capture(model, ["resid_post.0", "resid_post.2"]) as read, torch.no_grad():
        model(input_ids=ids)
    x = {name: read[name].flatten(0, 1) for name in ("resid_post.0", "resid_post.2")}
    made = loaded.split(loaded(x).reconstruction)
    assert torch.equal(loaded(x).reconstruction, output.sae(x).reconstruction)
    for name, part in x.items():
        unexplained = (made[name] - part).square().sum() / (part - part.mean(0)).square().sum()
        assert unexplained < 0.9, name


def test_a_run_ends_with_figures_of_every_source_that_eval_finds_again(tmp_path: Path):
    run = trainer(tmp_path, hook_point=JOINED, architecture="crosscoder", eval_tokens=400)
    metrics = run.train().metrics[""]
    assert metrics["sources"].keys() == {"resid_post.0", "resid_post.2"}
    assert "| `resid_post.2` |" in (tmp_path / "README.md").read_text()
    sae, held_out = SAE.from_pretrained(tmp_path), Dataset.from_dict({"text": text()["text"][:40]})
    again = evaluate_sae(sae, language_model(), held_out, pythia_like(), max_tokens=400, disable_tqdm=True)
    assert again["sources"]["resid_post.0"]["l0"] == pytest.approx(metrics["l0"], rel=0.2)


@pytest.mark.parametrize("architecture", CROSSCODERS)
def test_it_goes_on_bit_by_bit(tmp_path: Path, architecture: str):
    steps, stop = 7, random.Random(architecture).randrange(1, 7)
    options = {"hook_point": JOINED, "architecture": architecture, "dead_feature_window": 40}
    for folder, ends in (("whole", [steps]), ("broken", [stop, steps])):
        for end in ends:
            run = trainer(tmp_path / folder, callbacks=[stop_at(end)], **options)
            run.train(resume_from_checkpoint=True if end == steps and len(ends) > 1 else None)
    whole, broken = (contents(tmp_path / folder / f"checkpoint-{steps}") for folder in ("whole", "broken"))
    assert whole == broken and whole


def test_its_rows_are_those_of_the_places_and_beside_it_others_train(tmp_path: Path):
    """The same crosscoder from activations that were read by hand, and beside an SAE of one of the places."""
    saes = {"both": {"architecture": "crosscoder", "hook_point": JOINED}, "one": {"hook_point": "resid_post.0"}}
    beside = trainer(tmp_path / "beside", inputs={"saes": saes}).train().saes
    alone = trainer(tmp_path / "alone", architecture="crosscoder", hook_point=JOINED).train().sae
    assert torch.equal(beside["both"].W_dec, alone.W_dec) and beside["one"].W_dec.shape == (48, D_IN)


def test_it_trains_from_a_cache_as_from_the_model(tmp_path: Path):
    options = {"architecture": "crosscoder", "hook_point": JOINED}
    cached = cache_activations(
        arguments(tmp_path / "cache", **options),
        model=language_model(),
        train_dataset=text(),
        processing_class=pythia_like(),
    )
    assert sorted(cached.widths) == ["transformer.h.0.output", "transformer.h.2.output"]
    inputs = {"model": language_model()}
    from_cache = trainer(tmp_path / "run", activation_cache=str(tmp_path / "cache"), inputs=inputs, **options).train()
    assert isinstance(from_cache.sae, CrosscoderSAE) and from_cache.sae.config.hook_point == CANONICAL


@pytest.mark.parametrize("kind", ["arguments", "config", "joined tensor"])
def test_it_trains_on_activations_of_ones_own(tmp_path: Path, kind: str):
    rows = {"base": sparse_rows(640), "tuned": sparse_rows(640, seed=3)[:, :5]}
    sources = {"source_names": ["base", "tuned"], "source_widths": [D_IN, 5]}
    config = CrosscoderSAEConfig(**sources, n_features=48, k=4)
    inputs = {
        "arguments": {"activations": rows},
        "config": {"activations": rows, "saes": config},
        "joined tensor": {"activations": torch.cat(list(rows.values()), 1), "saes": config},
    }[kind]
    sae = trainer(tmp_path, inputs=inputs, architecture="crosscoder").train().sae
    assert sae.config.source_names == ["base", "tuned"] and sae.config.source_widths == [D_IN, 5]
    expected = [part.norm(dim=1).mean() for part in sae.split(sae.scaled(sae.join(rows))).values()]
    torch.testing.assert_close(torch.stack(expected), torch.tensor([D_IN**0.5, 5**0.5]), rtol=0.1, atol=0.0)


# -- what cannot be right ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, message",
    [
        ({"architecture": "topk", "hook_point": JOINED}, "reads one place, but .* joins 2: choose a crosscoder"),
        ({"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.0"}, "joins a place with itself"),
        ({"architecture": "crosscoder", "hook_point": "resid_post.0+resid_post.9"}, "no layer 9"),
        (
            {"architecture": "crosscoder", "hook_point": JOINED, "target_hook_point": "mlp_out.1"},
            "places joined by . take no target_hook_point",
        ),
    ],
)
def test_places_that_cannot_be_joined_end_a_run_before_its_first_step(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).train()


def test_a_config_of_other_sources_is_told_what_it_lacks(tmp_path: Path):
    config = CrosscoderSAEConfig(source_names=["a", "b"], source_widths=[5, D_IN], n_features=48, k=4)
    rows = {"a": sparse_rows(640), "b": sparse_rows(640)}
    with pytest.raises(ValueError, match=r"source_widths=\[5, 16\], but the activations at a\+b have \[16, 16\]"):
        SAETrainer(args=arguments(tmp_path), saes=config, activations=rows).train()
    with pytest.raises(ValueError, match="reads 'b', but the activations given are of a, c"):
        SAETrainer(args=arguments(tmp_path), saes=config, activations={"a": rows["a"], "c": rows["b"]}).train()


def test_an_estimate_counts_both_places():
    args = arguments("unused", hook_point=JOINED, architecture="crosscoder", train_batch_tokens=BATCH)
    needs = estimate(args, model=language_model()).saes[""]
    width = 2 * D_IN if language_model().config.hidden_size == D_IN else 2 * language_model().config.hidden_size
    assert needs.parameters == 2 * 48 * width + 48 + width
