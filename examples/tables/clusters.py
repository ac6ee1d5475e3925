"""Groups of documents that features make, each with the features that set it apart.

    hfsae featurize runs/tiny --dataset python-stdlib --split train --columns path --reduce mean \\
        --output runs/mean.parquet
    python examples/tables/clusters.py runs/mean.parquet --column path

Needs scikit-learn. Values are weighted by how few documents a feature fires in (tf-idf), reduced to a few directions,
and grouped by k-means.
"""

import argparse

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from hfsae import FeatureTable


def main(command_line: list[str] | None = None) -> None:
    """Prints the groups, the largest first."""
    parser = argparse.ArgumentParser(description="Clusters of documents by their features.")
    parser.add_argument("table", help="a table of documents")
    parser.add_argument("--column", required=True, help="the column to call documents by")
    parser.add_argument("--clusters", type=int, default=8, help="how many (default: %(default)s)")
    parser.add_argument("--directions", type=int, default=32, help="of the reduced space (default: %(default)s)")
    args = parser.parse_args(command_line)
    table = FeatureTable(args.table)
    names, rows = table.to_dataset()[args.column], table.to_csr()
    weighted = TfidfTransformer().fit_transform(rows)
    reduce = make_pipeline(TruncatedSVD(args.directions, random_state=0), Normalizer(copy=False))
    groups = KMeans(args.clusters, random_state=0).fit_predict(reduce.fit_transform(weighted))
    overall = np.asarray(weighted.mean(axis=0)).ravel()
    for group in np.argsort(-np.bincount(groups)):
        members = np.flatnonzero(groups == group)
        excess = np.asarray(weighted[members].mean(axis=0)).ravel() - overall
        print(f"{len(members)} documents, features {', '.join(map(str, np.argsort(-excess)[:4]))}")
        print("  " + ", ".join(str(names[int(i)]) for i in members[:6]))


if __name__ == "__main__":
    main()
