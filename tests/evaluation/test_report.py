"""The table for a terminal."""

from hfsae.evaluation import evaluate_sae, report
from tests.evaluation.tiny import batches, language_model, make_sae

METRICS = {
    "l0": 312.0,
    "mse": 0.000123456,
    "explained_variance": 0.9,
    "loss_recovered": None,
    "dead_fraction": 0.01,
    "n_tokens": 12345,
    "notes": {"loss_recovered": "the model hardly uses them"},
    "baselines": {
        "untrained": {"l0": 32.0, "explained_variance": 0.4, "loss_recovered": None},
        "pca": {"l0": 32.0, "explained_variance": 0.3, "components": 32},
    },
    "protocol": {"dataset": "org/text", "split": "test", "left_out": "padding"},
}


def test_values_stand_beside_their_ranges_and_baselines_with_a_mark_where_they_lie_outside():
    rows = {line[:21].strip(): line[21:].split() for line in report(METRICS).splitlines()}
    assert rows["metric"] == ["measured", "healthy", "untrained", "PCA-32"]
    assert rows["L0"] == ["312", "!", "10", "–", "100", "32.00", "32.00"]
    assert rows["explained variance"] == ["0.900", "~", ">", "0.95", "0.400", "0.300"]
    assert rows["dead features"] == ["0.010", "<", "0.05", "–", "–"]
    assert rows["loss recovered"] == ["–", "near", "1", "–", "–"]
    assert rows["MSE"][0] == "0.000123"


def test_warnings_reasons_and_the_text_follow_in_words():
    lines = report(METRICS, title="resid_post.1").splitlines()
    assert lines[0] == "resid_post.1"
    assert lines[-3].startswith("! L0: 312 is above 200")
    assert lines[-2] == "- loss_recovered: the model hardly uses them"
    assert lines[-1] == "measured on 12,345 tokens of org/text, test, left out: padding"


def test_baselines_of_another_number_of_tokens_are_told_and_stand_in_one_order():
    tokens = {"pca": {"l0": 32.0, "components": 32, "n_tokens": 12345}, "untrained": {"l0": 32.0, "n_tokens": 54321}}
    text = report(METRICS | {"baselines": tokens})
    assert text.splitlines()[0].split() == ["metric", "measured", "healthy", "untrained", "PCA-32"]
    assert "- untrained: of the record, on 54,321 tokens" in text and "- PCA-32: of" not in text


def test_a_value_that_rounds_to_the_end_of_a_range_has_more_digits():
    lines = report({"explained_variance": 0.79996, "dead_fraction": 0.05001}).splitlines()
    assert lines[1].split()[2:] == ["0.79996", "!", ">", "0.95"] and "0.79996 is below 0.8" in lines[-2]
    assert lines[2].split()[2:] == ["0.05001", "~", "<", "0.05"]


def test_columns_are_aligned_and_no_line_ends_in_space():
    table = report(METRICS).split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1
    assert all(line == line.rstrip() for line in report(METRICS).splitlines())


def test_a_real_evaluation_fits_the_table():
    metrics = evaluate_sae(make_sae(), language_model(), batches(), disable_tqdm=True, baselines=True)
    text = report(metrics)
    assert "PCA-4" in text and f"measured on {metrics['n_tokens']} tokens" in text
