"""The metrics as modules of the `evaluate` library: loaded without a network, fed with sums, combined."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import evaluate
import pytest
import torch
from torch import Tensor

from hfsae.evaluation import MEASURED, METRIC_SCRIPT, add, as_columns, finalise, load_metric, reconstruction_sums
from hfsae.functional import SparseFeatures

NATS = {"n_predictions": 10.0, "clean_nats": 20.0, "spliced_nats": 23.0, "zero_nats": 80.0, "mean_nats": 50.0}


@pytest.fixture(scope="module")
def batches() -> list[dict[str, Tensor]]:
    """The sums of three batches."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n_tokens in (3, 7, 1):
        x = torch.randn(n_tokens, 4, generator=generator) + 5
        x_hat = x + 0.2 * torch.randn(n_tokens, 4, generator=generator)
        z = torch.relu(torch.randn(n_tokens, 8, generator=generator) - 1)
        sums = reconstruction_sums(x, x_hat, SparseFeatures.from_dense(z), torch.full((4,), 5.0))
        nats = {name: torch.tensor(value * n_tokens, dtype=torch.float64) for name, value in NATS.items()}
        made.append(sums | nats | {"kl_nats": torch.tensor(0.5 * n_tokens, dtype=torch.float64)})
    return made


@pytest.fixture(scope="module")
def pooled(batches) -> dict:
    return finalise(add(add(batches[0], batches[1]), batches[2]))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", MEASURED)
def test_every_metric_pools_batches_to_what_the_evaluation_gives(name, batches, pooled):
    metric = load_metric(name)
    assert isinstance(metric, evaluate.Metric) and metric.description
    for sums in batches:
        metric.add_batch(**as_columns(sums, MEASURED[name].needs))
    value = pooled[name]
    assert metric.compute() == {name: value if name == "density" else pytest.approx(value, rel=1e-12)}


def test_rows_may_come_together_or_one_by_one(batches, pooled):
    needs = MEASURED["l0"].needs
    together = {name: [sums[name].item() for sums in batches] for name in needs}
    assert load_metric("l0").compute(**together) == {"l0": pytest.approx(pooled["l0"])}
    one_by_one = load_metric("l0")
    for sums in batches:
        one_by_one.add(**{name: sums[name].item() for name in needs})
    assert one_by_one.compute() == {"l0": pytest.approx(pooled["l0"])}


def test_combined_metrics_each_take_what_they_need(batches, pooled):
    names = ["l0", "explained_variance", "dead_fraction", "loss_recovered"]
    metrics = evaluate.combine([load_metric(name) for name in names])
    for sums in batches:
        metrics.add_batch(**as_columns(sums))
    assert metrics.compute() == {name: pytest.approx(pooled[name]) for name in names}


def test_the_file_is_loaded_by_its_path_without_a_network(batches, pooled, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(METRIC_SCRIPT, "kl", cache_dir=str(tmp_path))
    for sums in batches:
        metric.add_batch(**as_columns(sums, ("kl_nats", "n_predictions")))
    assert metric.compute() == {"kl": pytest.approx(pooled["kl"])}


def test_two_processes_pool_through_the_cache_of_evaluate(batches, pooled, tmp_path):
    def process(rank: int) -> dict | None:
        metric = load_metric("mse", process_id=rank, num_process=2, experiment_id="two", cache_dir=str(tmp_path))
        for sums in batches[rank::2]:
            metric.add_batch(**as_columns(sums, MEASURED["mse"].needs))
        return metric.compute()

    # `evaluate` lets its processes wait for each other, so they have to run at the same time.
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(process, (0, 1))) == [{"mse": pytest.approx(pooled["mse"])}, None]


def test_an_undefined_metric_is_none_and_the_log_says_why(caplog):
    metric = load_metric("loss_recovered")
    metric.add_batch(**{name: [value] for name, value in NATS.items() if name != "mean_nats"} | {"zero_nats": [20.1]})
    assert metric.compute() == {"loss_recovered": None}
    assert "less than 0.05" in caplog.text


def test_an_unknown_metric_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="unknown metric 'accuracy'; there are l0, explained_variance"):
        load_metric("accuracy")
    with pytest.raises(ValueError, match="choose a metric by config_name"):
        evaluate.load(METRIC_SCRIPT)


def test_the_evaluate_library_is_imported_only_when_a_metric_is_asked_for():
    code = "import sys, hfsae.evaluation; assert 'evaluate' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
