"""An `evaluate` module of every metric of SAEs: `evaluate.load(".../sae_metric.py", "loss_recovered")`.

The configuration's name chooses the metric. It takes the sums of a batch (never activations) and pools them:

    metrics = evaluate.combine([load_metric("l0"), load_metric("explained_variance")])
    for batch in batches:
        metrics.add_batch(**as_columns(reconstruction_sums(...)))
    metrics.compute()
"""

import logging

import datasets
import evaluate
import torch

from hfsae.evaluation.formulas import Undefined
from hfsae.evaluation.metrics import MEASURED

logger = logging.getLogger(__name__)

# The sums that are vectors; all others are single numbers.
_VECTORS = ("deviation", "tokens_firing")


class SAEMetric(evaluate.Metric):
    """One metric, chosen by `config_name`; its value is None where the sums do not define it."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in MEASURED:
            raise ValueError(
                f"choose a metric by config_name, one of {', '.join(MEASURED)}; got {self.config_name!r}."
            )
        metric = MEASURED[self.config_name]
        number = datasets.Value("float64")
        features = {name: datasets.Sequence(number) if name in _VECTORS else number for name in metric.needs}
        return evaluate.MetricInfo(
            description=metric.meaning,
            citation="",
            inputs_description=f"\nOne row of sums a batch: {', '.join(metric.needs)} (see hfsae.evaluation.sums).\n",
            features=datasets.Features(features),
        )

    def _compute(self, **columns: list) -> dict:
        sums = {name: torch.tensor(rows, dtype=torch.float64).sum(0) for name, rows in columns.items()}
        try:
            formula = MEASURED[self.config_name].formula
            assert formula is not None
            return {self.config_name: formula(sums)}
        except Undefined as reason:
            logger.warning("%s is undefined: %s.", self.config_name, reason)
            return {self.config_name: None}
