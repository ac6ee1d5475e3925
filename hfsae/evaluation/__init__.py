"""What an SAE is worth: every metric by one definition, pooled over tokens and processes, beside its baselines.

    metrics = evaluate_sae(sae, model, load_text("held_out.txt"), tokenizer, baselines=True)
    text = report(metrics)

`evaluate_saes` measures many on the same runs of the model, `evaluate_together` the model with all of them in place.
`load_metric` gives a metric as an `evaluate.Metric`, for sums of one's own.
"""

from hfsae.evaluation.baselines import PCA, untrained
from hfsae.evaluation.evaluate import evaluate_sae, evaluate_saes
from hfsae.evaluation.metrics import MEASURED, METRICS, finalise, warnings_for
from hfsae.evaluation.modules import METRIC_SCRIPT, load_metric
from hfsae.evaluation.report import report
from hfsae.evaluation.sums import add, as_columns, reconstruction_sums, reduce_sums
from hfsae.evaluation.together import evaluate_together
from hfsae.identity import weights_sha256

__all__ = [
    "MEASURED",
    "METRICS",
    "METRIC_SCRIPT",
    "PCA",
    "add",
    "as_columns",
    "evaluate_sae",
    "evaluate_saes",
    "evaluate_together",
    "finalise",
    "load_metric",
    "reconstruction_sums",
    "reduce_sums",
    "report",
    "untrained",
    "warnings_for",
    "weights_sha256",
]
