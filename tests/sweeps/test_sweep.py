"""A sweep's file, its run and what it writes."""

import csv
import json

import pytest
import torch

from hfsae import SAE
from hfsae.estimate.run_needs import estimate
from hfsae.hooks import HookPointError
from hfsae.sweeps.sweep import Sweep, run_sweep
from hfsae.sweeps.sweep_results import results_table
from tests.data.tiny import language_model, pythia_like
from tests.hub.test_plots import share_of_ink
from tests.training.tiny import arguments, stop_at, text, trainer


def names(content):
    return list(Sweep.of(content).saes)


# -- the file ---------------------------------------------------------------------------------------------------------
def test_lists_are_multiplied_and_names_say_what_differs():
    assert names({"architecture": ["topk", "batch_topk"], "k": [8, 16], "seed": 3}) == [
        *("topk-k8", "topk-k16", "batch_topk-k8", "batch_topk-k16")
    ]
    assert names({"hook_point": ["resid_post.1", "mlp_out.0"], "learning_rate": ["1e-3", "auto"], "seed": [0, 1]})[
        :3
    ] == [
        "topk-resid_post.1-lr0.001-seed0",
        "topk-resid_post.1-lr0.001-seed1",
        "topk-resid_post.1-lrauto-seed0",
    ]


def test_each_sae_keeps_what_its_architecture_reads():
    sweep = Sweep.of({"architecture": ["topk", "gated"], "k": [4, 8], "target_l0": [16, 32]})
    assert list(sweep.saes) == ["topk-k4", "topk-k8", "gated-l0-16", "gated-l0-32"]
    assert sweep.saes["topk-k4"] == {"architecture": "topk", "k": 4}
    assert sweep.saes["gated-l0-32"] == {"architecture": "gated", "target_l0": 32.0}


def test_what_one_of_the_saes_reads_may_be_given_for_all():
    content = {"architecture": ["topk", "gated"], "target_l0": 16, "lr_end": 1e-5}
    sweep = Sweep.of({**content, "lr_scheduler_type": ["constant", "linear"]})
    assert len(sweep.saes) == 4 and sweep.args.target_l0 == 16


def test_an_explicit_list_stands_beside_the_shared_lists_and_may_hold_lists_and_names():
    sweep = Sweep.of(
        {
            "k": [4, 8],
            "expansion_factor": 4,
            "saes": [
                {"architecture": "topk"},
                {"architecture": "gated", "k": 6, "seed": [0, 1]},
                {"k": 2, "name": "x"},
            ],
        }
    )
    assert list(sweep.saes) == ["topk-k4", "topk-k8", "gated-k6-seed0", "gated-k6-seed1", "x"]
    assert sweep.args.expansion_factor == 4 and sweep.saes["x"] == {"k": 2}


def test_the_command_line_wins_and_may_give_lists(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("k: [4, 8]\noutput_dir: here\nn_features: 48")
    sweep = Sweep.read(path, {"k": "[2, 3, 5]", "output_dir": "there", "config": "ignored"})
    assert list(sweep.saes) == ["topk-k2", "topk-k3", "topk-k5"] and sweep.args.output_dir == "there"
    assert list(Sweep.read(path, {"k": "16"}).saes) == ["topk"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training_tokens": [1, 2]}, "training_tokens: expected int, got"),
        ({"archtecture": "topk"}, "unknown argument 'archtecture'. Did you mean 'architecture'"),
        ({"architecture": ["topk", "topkk"]}, "unknown architecture 'topkk'"),
        ({"k": []}, "k is an empty list"),
        ({"k": [4, "many"]}, "k: expected int, got 'many'"),
        ({"k": [4, -1]}, "k must be positive, got -1"),
        ({"saes": {"k": 4}}, "saes must be a list"),
        ({"saes": [{"output_dir": "x"}]}, "saes: unknown argument 'output_dir'"),
        ({"saes": [{"k": 2, "name": "a"}, {"k": 3, "name": "a"}]}, "two SAEs are called 'a'"),
        ({"saes": [{"k": [2, 3], "name": "a"}]}, "the name 'a' is given to 2 SAEs"),
        (
            {"target_l0": [8], "saes": [{"sparsity_coefficient": 1, "target_l0": 2, "architecture": "gated"}]},
            "not both",
        ),
        ({"architecture": ["topk", "batch_topk"], "target_l0": [8, 16]}, "target_l0 steers a sparsity penalty, which"),
        ({"architecture": "topk", "sparsity_coefficient": 2}, "sparsity_coefficient steers a .* which topk has not"),
        (
            {"saes": [{"architecture": "gated"}, {"architecture": "topk", "target_l0": 8}]},
            "target_l0 steers a .* which topk has not",
        ),
        ({"lr_end": 1e-5}, "lr_end is where a cosine .* the rate of topk is constant"),
        (
            {
                "architecture": ["gated", "jumprelu"],
                "sparsity_coefficient": 2,
                "saes": [{"architecture": "jumprelu", "architecture_options": {"sparsity": "l0_quadratic"}}],
            },
            "SAE '.*jumprelu.*': sparsity='l0_quadratic' is the distance to a number",
        ),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_names_it(content, message):
    with pytest.raises(ValueError, match=message):
        Sweep.of(content)


# -- the run ----------------------------------------------------------------------------------------------------------
SAES = [
    {"architecture": ["topk", "jumprelu"], "k": [2, 6]},
    {"architecture": "matryoshka", "k": 4, "n_features": 32, "hook_point": "mlp_out.0"},
]


def sweep_of(folder, saes, **options) -> Sweep:
    given = {name: value for name, value in vars(arguments(folder, **options)).items() if name != "k"}
    return Sweep.of({**given, "saes": saes})


def inputs(**more):
    return {"model": language_model(), "train_dataset": text(), "processing_class": pythia_like(), **more}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a sweep's results, and what the run returned."""
    folder = tmp_path_factory.mktemp("sweep")
    output = run_sweep(sweep_of(folder, SAES, steps=20, eval_tokens=150, learning_rate=0.003), **inputs())
    return folder, output


def test_results_are_written_as_csv_json_and_a_picture(swept):
    folder, output = swept
    stored = json.loads((folder / "results.json").read_text())
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [row["name"] for row in stored["saes"]]
    by_name = {row["name"]: row for row in stored["saes"]}
    assert {name for name, row in by_name.items() if row["part_of"] is None} == set(output.saes)
    for name, metrics in output.metrics.items():
        assert by_name[name]["l0"] == metrics["l0"] and by_name[name]["hook_point"].startswith("transformer.h.")
        assert SAE.from_pretrained(folder / name).config.metrics["l0"] == metrics["l0"]
    assert {by_name[name]["n_features"] for name in by_name if by_name[name]["part_of"]} == {2, 4, 8, 16}
    assert share_of_ink(folder / "pareto.png") > 0.01


def test_the_front_is_named_for_each_place_and_metric(swept):
    folder, output = swept
    front = json.loads((folder / "results.json").read_text())["front"]
    assert set(front) == {"transformer.h.1.output", "transformer.h.0.mlp.output"}
    on_it = front["transformer.h.1.output"]["explained_variance"]
    sparsest = min((n for n in output.saes if "matryoshka" not in n), key=lambda name: output.metrics[name]["l0"])
    assert on_it[0] == sparsest and len(on_it) >= 1
    rows = json.loads((folder / "results.json").read_text())["saes"]
    table = results_table(rows).splitlines()
    starred = [line.split()[0] for line in table if line.endswith("*")]
    assert {*starred} == {name for of_place in front.values() for name in of_place["loss_recovered"]}
    assert table[-1].startswith("* on the front") == bool(starred)
    known = [{**row, "loss_recovered": 0.5} for row in rows]
    assert results_table(known).splitlines()[-1].startswith("* on the front")


def test_an_sae_of_a_sweep_ends_as_it_ends_alone(tmp_path, swept):
    _, output = swept
    options = {"architecture": "jumprelu", "k": 6, "steps": 20, "learning_rate": 0.003}
    alone = trainer(tmp_path, **options).train().sae.state_dict()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in output.saes["jumprelu-k6"].state_dict().items())


def test_every_sae_has_its_own_rate_seed_and_record(tmp_path):
    saes = [{"learning_rate": [1e-3, 2e-3], "seed": [0, 1], "k": 4}]
    output = run_sweep(sweep_of(tmp_path, saes, steps=3, logging_steps=3, lr_decay_fraction=0), **inputs())
    log = output.log_history[-1]
    assert log["topk-lr0.001-seed0/learning_rate"] == 1e-3 and log["topk-lr0.002-seed1/learning_rate"] == 2e-3
    rows = [sae.W_dec[0] for sae in output.saes.values()]
    assert torch.allclose(rows[0], rows[2], atol=0.05) and not torch.allclose(rows[0], rows[1], atol=0.05)
    training = output.saes["topk-lr0.002-seed1"].config.training
    assert training["seed"] == 1 and training["arguments"]["learning_rate"] == 2e-3
    assert not (tmp_path / "pareto.png").exists() and json.loads((tmp_path / "results.json").read_text())["saes"]


def test_a_picture_that_cannot_be_drawn_costs_the_tables_nothing(tmp_path, caplog):
    (tmp_path / "pareto.png" / "taken").mkdir(parents=True)
    run_sweep(sweep_of(tmp_path, [{"k": [2, 4]}], steps=2, eval_tokens=100), **inputs())
    assert f"{tmp_path / 'pareto.png'} not drawn" in caplog.text and "draw by hand: pareto_plot(" in caplog.text
    assert (tmp_path / "results.csv").is_file() and (tmp_path / "results.json").is_file()


def test_a_sweep_that_is_stopped_goes_on_and_refuses_other_arguments(tmp_path):
    def sweep(rate: float, **options) -> Sweep:
        saes = [{"k": [2, 4]}, {"architecture": "gated", "k": 4, "learning_rate": rate, "name": "gated"}]
        return sweep_of(tmp_path, saes, steps=6, **options)

    assert not run_sweep(sweep(1e-3), **inputs(callbacks=[stop_at(3)])).completed
    assert not (tmp_path / "results.json").exists()
    with pytest.raises(ValueError, match="SAE 'gated': .*learning_rate was 0.001 and is 0.002"):
        run_sweep(sweep(2e-3, resume_from_checkpoint="last"), **inputs())
    assert run_sweep(sweep(1e-3, resume_from_checkpoint="last"), **inputs()).steps == 6
    assert len(json.loads((tmp_path / "results.json").read_text())["saes"]) == 3


@pytest.mark.slow
def test_a_sweep_that_does_not_fit_says_so_and_is_trained_in_groups_from_a_cache(hub, tmp_path, caplog, swept):
    """Each SAE ends with the bits that it ends with beside all the others, and all are pushed to one repository."""
    push = {"push_to_hub": True, "hub_model_id": "tester/sweep"}
    sweep = sweep_of(tmp_path, SAES, steps=20, eval_tokens=150, learning_rate=0.003, **push)
    needs = estimate(sweep.args, sweep.saes, model=language_model())
    three = needs.peak_bytes - 2 * max(sae.state_bytes for sae in needs.saes.values())
    output = run_sweep(sweep, memory_bytes=three, **inputs())
    assert "groups from an activation cache" in caplog.text
    _, together = swept
    for name, sae in together.saes.items():
        grouped = output.saes[name].state_dict()
        assert all(torch.equal(tensor, grouped[key]) for key, tensor in sae.state_dict().items()), name
    stored = json.loads((tmp_path / "results.json").read_text())
    assert {row["name"] for row in stored["saes"] if row["part_of"] is None} == set(sweep.saes)
    assert (tmp_path / "group-2").is_dir() and (tmp_path / "activations").is_dir()
    pushed = {path.split("/")[0] for path in hub.repo("tester/sweep").files() if path.endswith("model.safetensors")}
    assert pushed == set(sweep.saes)


def test_an_sae_that_cannot_fit_ends_the_sweep_before_it_begins(tmp_path):
    with pytest.raises(MemoryError, match="training topk-k2 needs .* are free: take fewer features"):
        run_sweep(sweep_of(tmp_path / "none", SAES[:1]), memory_bytes=1000, **inputs())
    assert not (tmp_path / "none").exists()


# -- places -----------------------------------------------------------------------------------------------------------
def places(content, model=None):
    sweep = Sweep.of(content).at_each_place(model or language_model())
    return {name: (own.get("hook_point"), own.get("target_hook_point")) for name, own in sweep.saes.items()}


def test_a_wildcard_a_range_and_commas_are_an_sae_for_each_place():
    mlps = {"hook_point": "mlp_in.*", "target_hook_point": "mlp_out.*"}
    written = [f"transformer.h.{layer}.mlp.output" for layer in range(3)]
    assert places({**mlps, "k": [2, 4]}) == {
        f"topk-k{k}-mlp_in.{layer}": (f"mlp_in.{layer}", written[layer]) for k in (2, 4) for layer in range(3)
    }
    assert places({"hook_point": ["resid_post.0-1", "mlp_out.2"]}) == {
        "topk-resid_post.0-1-resid_post.0": ("resid_post.0", None),
        "topk-resid_post.0-1-resid_post.1": ("resid_post.1", None),
        "topk-mlp_out.2": ("mlp_out.2", None),
    }
    assert list(places({"hook_point": "resid_post.1,mlp_out.0"})) == ["topk-resid_post.1", "topk-mlp_out.0"]
    assert list(places({**mlps, "architecture": ["topk", "topk_cross_layer_transcoder"]})) == [
        *(f"topk-mlp_in.{layer}" for layer in range(3)),
        "topk_cross_layer_transcoder",  # one for all layers
    ]


def test_crosscoders_of_two_models_are_one_a_layer():
    models = {"base": language_model(), "tuned": language_model()}
    content = {"architecture": "crosscoder", "hook_point": "resid_post.*", "k": [2, 4]}
    assert list(places(content, models)) == [
        f"crosscoder-k{k}-resid_post.{layer}" for k in (2, 4) for layer in range(3)
    ]


def test_places_that_are_not_there_end_a_sweep_before_anything_is_loaded(tmp_path):
    language_model().config.save_pretrained(tmp_path)  # a config, and no weights
    content = {"model_name_or_path": str(tmp_path), "dataset_name": "missing", "k": [2, 4]}
    with pytest.raises(HookPointError, match="resid_post.2-7"):
        run_sweep(Sweep.of({**content, "hook_point": "resid_post.2-7"}))
    with pytest.raises(ValueError, match="names 3 places and target_hook_point 2"):
        run_sweep(Sweep.of({**content, "hook_point": "mlp_in.*", "target_hook_point": "mlp_out.0,mlp_out.1"}))
