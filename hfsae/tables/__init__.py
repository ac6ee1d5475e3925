"""Datasets as features: one sparse row of an SAE's features for each document of a dataset, or for each token.

    table = featurize(sae, model, tokenizer, load_text("data.jsonl"), "features.parquet")
    table.to_csr()      # scipy: (documents, n_features)
    table.to_dataset()  # Hugging Face datasets

Nothing of size tokens × n_features, or documents × n_features, is ever made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hfsae.tables.choices import Level, Reduce

if TYPE_CHECKING:
    from hfsae.tables.table import FeatureTable
    from hfsae.tables.written import featurize

__all__ = ["FeatureTable", "Level", "Reduce", "featurize"]

# What is heavy waits for its first use: the help of the command line needs the choices alone.
_LATER = {"FeatureTable": "table", "featurize": "written"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hfsae.tables.{_LATER[name]}"), name)
