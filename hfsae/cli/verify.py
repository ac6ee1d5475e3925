"""`hfsae verify`: whether the card of an SAE is true."""

from hfsae.cli.measuring import (
    AllowPickle,
    BatchSize,
    Dataset,
    DatasetConfig,
    Model,
    Place,
    Revision,
    Split,
    Subfolder,
    Tokens,
    hub_options,
)


def run(
    path: Place,
    subfolder: Subfolder = "",
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    model_name_or_path: Model = None,
    dataset_name: Dataset = None,
    dataset_config: DatasetConfig = None,
    dataset_split: Split = None,
    max_tokens: Tokens = None,
    batch_size: BatchSize = 16,
) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.saved import verify
    from hfsae.saved.verify_set import record_of, verify_set

    of_set = not subfolder and not allow_pickle and record_of(path, revision) is not None
    outcome = (verify_set if of_set else verify)(
        path,
        model=model_name_or_path,
        dataset=dataset_name,
        dataset_config=dataset_config,
        split=dataset_split,
        max_tokens=max_tokens,
        batch_size=batch_size,
        **hub_options(subfolder, revision, allow_pickle),
    )
    print(outcome)
    return 0 if outcome.ok else 1
