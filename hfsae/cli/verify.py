"""`hfsae verify`: whether the card of an SAE is true."""

from typing import Any

from hfsae.cli.measuring_options import (
    AllowPickle,
    BatchSize,
    Dataset,
    DatasetConfig,
    Model,
    Revision,
    SAESource,
    Split,
    Subfolder,
    TokenBudget,
    hub_options,
)


def run(
    path: SAESource,
    subfolder: Subfolder = "",
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    model_name_or_path: Model = None,
    dataset_name: Dataset = None,
    dataset_config: DatasetConfig = None,
    dataset_split: Split = None,
    max_tokens: TokenBudget = None,
    batch_size: BatchSize = 16,
) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.saved import verify
    from hfsae.saved.sets import find_set
    from hfsae.saved.verify_set import verify_found

    measuring: dict[str, Any] = {
        "model": model_name_or_path,
        "dataset": dataset_name,
        "dataset_config": dataset_config,
        "split": dataset_split,
        "max_tokens": max_tokens,
        "batch_size": batch_size,
    }
    found = None if subfolder or allow_pickle else find_set(path, revision=revision)
    if found is None:
        outcome = verify(path, **measuring, **hub_options(subfolder, revision, allow_pickle))
    else:
        outcome = verify_found(found, **measuring)
    print(outcome)
    return 0 if outcome.ok else 1
