"""Which features tell a label: a linear probe on the table of a dataset's documents, beside the commonest answer.

    make train
    hfsae featurize runs/tiny --dataset python-stdlib --split train --columns path --max_documents 250 \\
        --output runs/train.parquet
    hfsae featurize runs/tiny --dataset python-stdlib --split held_out --columns path --output runs/held_out.parquet
    python examples/tables/probe.py runs/train.parquet runs/held_out.parquet --column path --pattern '^asyncio/'

Needs scikit-learn. The matrix stays sparse from the disk to the probe.
"""

import argparse
import re

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from hfsae import FeatureTable


def labelled(path: str, column: str, pattern: str) -> tuple[csr_array, np.ndarray]:
    """The rows of a table, (documents, n_features), and for each whether a column of it matches a pattern."""
    table = FeatureTable(path)
    values = table.to_dataset()[column]
    return table.to_csr(), np.array([re.search(pattern, str(value)) is not None for value in values])


def main(command_line: list[str] | None = None) -> None:
    """Fits on one table, measures on another, and names the features that count most."""
    parser = argparse.ArgumentParser(description="A linear probe on features of documents.")
    parser.add_argument("train", help="a table of documents")
    parser.add_argument("held_out", help="one of others")
    parser.add_argument("--column", required=True, help="the column that tells the label")
    parser.add_argument("--pattern", required=True, help="a regular expression that finds what is positive")
    args = parser.parse_args(command_line)
    x, y = labelled(args.train, args.column, args.pattern)
    held_out_x, held_out_y = labelled(args.held_out, args.column, args.pattern)
    if y.all() or not y.any():
        parser.error(f"{args.pattern!r} finds {int(y.sum())} of {len(y)} documents: a probe needs both kinds.")
    scaler = MaxAbsScaler().fit(x)
    probe = LogisticRegression(max_iter=1000, class_weight="balanced").fit(scaler.transform(x), y)
    accuracy = probe.score(scaler.transform(held_out_x), held_out_y)
    commonest = max(held_out_y.mean(), 1 - held_out_y.mean())
    print(f"accuracy on {len(held_out_y)} held-out documents: {accuracy:.3f}, the commonest answer {commonest:.3f}")
    for feature in np.argsort(-np.abs(probe.coef_[0]))[:5]:
        print(f"  feature {feature}: {probe.coef_[0][feature]:+.2f}")


if __name__ == "__main__":
    main()
