"""Crosscoders of two models and cross-layer transcoders as others get them: verified, pushed, pulled, in use."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hfsae import SAE, attach_all, cache_activations, diff, self_check
from hfsae.dashboard import make_dashboard
from hfsae.saved import verify
from hfsae.saving import write_config
from hfsae.sweeps.sweep import Sweep, run_sweep
from tests.dashboard.tiny import index_of
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, text, trainer

pytestmark = pytest.mark.slow

PLACES = {"hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*", "architecture": "cross_layer_transcoder"}
LAYERS = len(language_model().transformer.h)


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """A folder with two language models, which share a tokenizer, and a text."""
    root = tmp_path_factory.mktemp("disk")
    torch.manual_seed(5)
    for change, name in enumerate(("base", "tuned")):
        lm = language_model()
        with torch.no_grad():
            for block in lm.transformer.h:
                block.mlp.c_proj.weight.add_(0.3 * change * torch.randn_like(block.mlp.c_proj.weight))
        lm.save_pretrained(root / name)
        pythia_like().save_pretrained(root / name)
    (root / "text.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in text()["text"]))
    return root


def named(disk: Path, *, both: bool) -> dict:
    """What a run from files alone is told."""
    models = {"model_name_or_path": str(disk / "base"), "dataset_name": str(disk / "text.jsonl")}
    compared = {"compare_model_name_or_path": str(disk / "tuned"), "architecture": "crosscoder"} if both else PLACES
    return {**models, **compared, "eval_tokens": 300}


def run(folder: Path, disk: Path, *, both: bool, **options):
    """A short run from files alone."""
    inputs = {"model": None, "processing_class": None, "train_dataset": None}
    return trainer(folder, inputs=inputs, steps=20, **named(disk, both=both), **options).train()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, disk) -> dict[str, Path]:
    """The folders of a crosscoder of both models and of a cross-layer transcoder of one. Not to be written to."""
    folders = {kind: tmp_path_factory.mktemp("runs") / kind for kind in ("crosscoder", "layers")}
    run(folders["crosscoder"], disk, both=True)
    run(folders["layers"], disk, both=False, n_features=LAYERS * 32)
    return folders


@pytest.fixture
def on_the_hub(hub, disk, runs, tmp_path) -> dict[str, str]:
    """Repositories of both, whose language models are on the Hub too; no path of this disk is named there."""
    for name in ("base", "tuned"):
        HfApi().create_repo(f"tester/{name}")
        HfApi().upload_folder(repo_id=f"tester/{name}", folder_path=disk / name)
    for kind, folder in runs.items():
        copied = shutil.copytree(folder, tmp_path / kind)
        sae = SAE.from_pretrained(copied)
        sae.config.base_model = "tester/base"
        for source in getattr(sae.config, "source_models", None) or []:
            source["base_model"] = f"tester/{Path(source['base_model']).name}"
        write_config(sae.config, copied)
        SAE.from_pretrained(copied).push_to_hub(f"tester/{kind}", folder=copied)
    return {kind: f"tester/{kind}" for kind in runs}


@pytest.mark.parametrize("kind", ["crosscoder", "layers"])
def test_its_card_is_true_and_one_that_boasts_is_found_out(runs, tmp_path, kind):
    outcome = verify(runs[kind])
    assert outcome.ok and outcome.same_text, str(outcome)
    changed = shutil.copytree(runs[kind], tmp_path / "changed")
    sae = SAE.from_pretrained(changed)
    check = self_check(sae, sae.load_base_model(), text()["text"][:60], sae.load_tokenizer())
    assert check.ok and check.recorded.explained_variance is not None, str(check)
    with torch.no_grad():
        for rows in sae.decoder_weights:
            rows.copy_(rows.flip(0))
    sae.save_pretrained(changed)
    outcome = verify(changed)
    assert not outcome.ok and outcome.problems[0].startswith("The weights are not the measured ones")


@pytest.mark.parametrize("kind", ["crosscoder", "layers"])
def test_its_dashboard_shows_features_of_all_sources(runs, disk, tmp_path, kind):
    options = {"dataset": str(disk / "text.jsonl"), "split": "train", "max_tokens": 300, "disable_tqdm": True}
    shown = index_of(make_dashboard(runs[kind], tmp_path / "page.html", **options))
    sae = SAE.from_pretrained(runs[kind])
    assert shown["about"]["n_features"] == sae.config.n_features
    if kind == "layers":  # features of each layer
        assert {feature // 32 for feature in shown["features"]["index"]} == set(range(LAYERS))


def test_a_crosscoder_comes_back_from_the_hub_with_both_models(on_the_hub, runs, disk):
    pulled, here = SAE.from_pretrained(on_the_hub["crosscoder"]), SAE.from_pretrained(runs["crosscoder"])
    assert all(torch.equal(tensor, here.state_dict()[name]) for name, tensor in pulled.state_dict().items())
    models = pulled.load_base_model()
    assert list(models.models) == ["base", "tuned"]
    for name, lm in models.models.items():
        there = language_model().from_pretrained(disk / name)
        assert all(torch.equal(one, other) for one, other in zip(lm.parameters(), there.parameters(), strict=True))
    texts = text()["text"][:20]
    found = [
        diff(sae, sae.load_base_model(), texts, sae.load_tokenizer(), disable_tqdm=True) for sae in (pulled, here)
    ]
    assert found[0].classes == found[1].classes
    assert torch.equal(found[0].scaling.error.nan_to_num(), found[1].scaling.error.nan_to_num())
    assert verify(on_the_hub["crosscoder"], dataset=str(disk / "text.jsonl"), split="train", max_tokens=300).claims


def test_a_cross_layer_transcoder_comes_back_from_the_hub_and_stands_in_its_model(on_the_hub, runs):
    pulled, here = SAE.from_pretrained(on_the_hub["layers"]), SAE.from_pretrained(runs["layers"])
    assert all(torch.equal(tensor, here.state_dict()[name]) for name, tensor in pulled.state_dict().items())
    lm, ids = pulled.load_base_model(), torch.arange(12)[None]
    with torch.no_grad():
        clean = lm(ids).logits
        with attach_all(lm, pulled.by_layer(), splice=True) as attached:
            spliced = lm(ids).logits
        with attach_all(lm, here.by_layer(), splice=True):
            again = lm(ids).logits
        with attach_all(lm, pulled.by_layer(), splice=True, keep_error=True):
            kept = lm(ids).logits
    assert [one.features.shape for one in attached.values()] == [(1, 12, 32)] * LAYERS
    assert torch.equal(spliced, again) and not torch.allclose(spliced, clean, atol=1e-3)
    torch.testing.assert_close(kept, clean, rtol=1e-4, atol=1e-4)


def test_a_cross_layer_transcoder_trains_from_a_cache_as_from_the_model(tmp_path, disk):
    options = {"n_features": LAYERS * 32, "steps": 8, **named(disk, both=False), "eval_tokens": 0}
    cache_activations(arguments(tmp_path / "cache", **options))
    inputs = {"model": None, "processing_class": None, "train_dataset": None}
    ends = [
        trainer(tmp_path / name, inputs=inputs, **options, **more).train().sae.state_dict()
        for name, more in {"a": {"activation_cache": str(tmp_path / "cache")}, "b": {}}.items()
    ]
    for name, tensor in ends[0].items():  # thresholds are fitted on rows of the cache, or on other text
        assert torch.allclose(tensor, ends[1][name], rtol=0, atol=0.05 if name == "threshold" else 0), name


@pytest.mark.parametrize("both", [True, False])
def test_a_sweep_ends_with_each_as_it_ends_alone(tmp_path, disk, both):
    options = {"n_features": LAYERS * 32, "steps": 6, **named(disk, both=both), "eval_tokens": 200}
    given = {name: value for name, value in vars(arguments(tmp_path / "swept", **options)).items() if name != "k"}
    output = run_sweep(Sweep.of({**given, "saes": [{"k": [2, 4]}]}))
    rows = json.loads((tmp_path / "swept" / "results.json").read_text())["saes"]
    assert len(rows) == 2 and all(row["explained_variance"] is not None for row in rows)
    inputs = {"model": None, "processing_class": None, "train_dataset": None}
    alone = trainer(tmp_path / "alone", inputs=inputs, **options, k=2).train()
    (name,) = [name for name in output.saes if name.endswith("k2")]
    swept = output.saes[name].state_dict()
    assert all(torch.equal(tensor, swept[key]) for key, tensor in alone.sae.state_dict().items())
    assert output.metrics[name]["sources"] == alone.metrics[""]["sources"]
