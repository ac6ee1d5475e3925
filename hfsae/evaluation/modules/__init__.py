"""The metrics as modules of the `evaluate` library, which is imported when the first one is asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsae.evaluation.metrics import MEASURED

if TYPE_CHECKING:
    from evaluate import Metric

METRIC_SCRIPT = str(Path(__file__).with_name("sae_metric.py"))
"""What `evaluate.load` takes, with a metric's name: `evaluate.load(METRIC_SCRIPT, "l0")`. No network is needed."""


def load_metric(name: str, **kwargs: Any) -> "Metric":
    """A metric as an `evaluate.Metric`: fed with sums batch by batch, it gives the pooled figure.

    Args:
        name: One of `hfsae.evaluation.MEASURED`.
        **kwargs: For `evaluate.Metric`: `num_process` and `process_id` to pool over processes, `keep_in_memory`,
            `cache_dir`, `experiment_id`.

    Raises:
        ValueError: If there is no such metric.

    Example:
        >>> l0 = load_metric("l0", keep_in_memory=True)
        >>> l0.add_batch(active=[64.0], n_tokens=[2.0])
        >>> l0.add_batch(active=[10.0], n_tokens=[1.0])
        >>> l0.compute()  # doctest: +ELLIPSIS
        {'l0': 24.66...}
    """
    if name not in MEASURED:
        raise ValueError(f"unknown metric {name!r}; there are {', '.join(MEASURED)}.")
    from hfsae.evaluation.modules.sae_metric import SAEMetric

    return SAEMetric(config_name=name, **kwargs)
