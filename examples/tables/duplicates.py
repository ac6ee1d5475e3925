"""Documents that are nearly the same, by the cosine of their features: pairs above a bound, the nearest first.

    hfsae featurize runs/tiny --dataset python-stdlib --split train --columns path --reduce mean \\
        --output runs/mean.parquet
    python examples/tables/duplicates.py runs/mean.parquet --column path

Needs scikit-learn. Two documents need not share a word to be near: what counts is what their tokens mean to the model.
"""

import argparse

from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.neighbors import NearestNeighbors

from hfsae import FeatureTable


def main(command_line: list[str] | None = None) -> None:
    """Prints the pairs."""
    parser = argparse.ArgumentParser(description="Near duplicates among documents, by their features.")
    parser.add_argument("table", help="a table of documents")
    parser.add_argument("--column", required=True, help="the column to call documents by")
    parser.add_argument("--at_least", type=float, default=0.95, help="the cosine of a pair (default: %(default)s)")
    parser.add_argument("--show", type=int, default=10, help="pairs to print (default: %(default)s)")
    args = parser.parse_args(command_line)
    table = FeatureTable(args.table)
    names, rows = table.to_dataset()[args.column], TfidfTransformer().fit_transform(table.to_csr())
    near = NearestNeighbors(radius=1 - args.at_least, metric="cosine").fit(rows)
    distances, others = near.radius_neighbors(rows)
    pairs = sorted(
        (float(distance), document, int(other))
        for document in range(len(names))
        for distance, other in zip(distances[document], others[document], strict=True)
        if document < other
    )
    print(f"{len(pairs)} pairs of {len(names)} documents have a cosine of {args.at_least} at least")
    for distance, document, other in pairs[: args.show]:
        print(f"  {1 - distance:.3f}  {names[document]}  {names[other]}")


if __name__ == "__main__":
    main()
