"""`hfsae featurize`: the features of a dataset's documents, or tokens, as a sparse table."""

import os
from typing import Annotated

from hfsae.cli.measuring_options import BatchSize, InBfloat16, Model, OnHub, SAESource
from hfsae.command_line import NUMBERS, option
from hfsae.tables.choices import Level, Reduce

_TEXT = "Text"


def run(
    path: SAESource,
    dataset_name: Annotated[
        str,
        option(
            "--dataset_name",
            "Dataset of the Hub, file, folder or python-stdlib. --dataset for short.",
            rich_help_panel=_TEXT,
        ),
    ],
    output: Annotated[str, option("--output", "A file that ends in .parquet, or a folder of such files.")],
    level: Annotated[Level, option("--level", "What a row stands for.")] = "document",
    reduce: Annotated[
        Reduce,
        option(
            "--reduce",
            "A document's value: the largest of its tokens, their mean, how many fire, or the value on the last one.",
        ),
    ] = "max",
    features: Annotated[
        list[int] | None, option("--features", "These features; by default all.", metavar=NUMBERS)
    ] = None,
    columns: Annotated[
        list[str] | None,
        option("--columns", "A column of the dataset to carry along; may be repeated.", rich_help_panel=_TEXT),
    ] = None,
    dataset_config: Annotated[
        str | None, option("--dataset_config", "Configuration of the dataset.", rich_help_panel=_TEXT)
    ] = None,
    dataset_split: Annotated[
        str | None,
        option(
            "--dataset_split",
            "Split of the dataset; by default the only one, or test. --split for short.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    streaming: Annotated[
        bool, option("--streaming", "Read the dataset while iterating.", rich_help_panel=_TEXT)
    ] = False,
    text_column: Annotated[
        str | None, option("--text_column", "The column of documents; by default it is found.", rich_help_panel=_TEXT)
    ] = None,
    max_documents: Annotated[
        int | None,
        option("--max_documents", "The first documents alone; by default all.", rich_help_panel=_TEXT),
    ] = None,
    context_length: Annotated[
        int | None, option("--context_length", "Tokens the model sees at once; by default as in training.")
    ] = None,
    documents_per_shard: Annotated[
        int, option("--documents_per_shard", "Documents in memory together; an interruption costs no more.")
    ] = 2_000,
    *,
    on_hub: OnHub,
    model_name_or_path: Model = None,
    batch_size: BatchSize = 32,
    bf16: InBfloat16 = False,
) -> int:
    """Writes the table, or goes on with it; each process that a launcher started writes its share of a folder."""
    from hfsae.data import TextSource
    from hfsae.language_model import rename_base_model
    from hfsae.modeling import SAE
    from hfsae.parallel.launching import launched
    from hfsae.tables.written import featurize

    if max_documents is not None and max_documents < 1:
        raise ValueError(f"--max_documents {max_documents}: expected 1 document or more.")
    source = TextSource(
        dataset=dataset_name, dataset_config=dataset_config, split=dataset_split, streaming=streaming
    ).resolved()
    sae = SAE.from_pretrained(path, **on_hub.keywords())
    if model_name_or_path is not None:
        rename_base_model(sae.config, model_name_or_path)
    documents = source.load()
    if max_documents is not None:
        documents = documents.take(max_documents if streaming else min(max_documents, len(documents)))
    table = featurize(
        sae,
        sae.load_base_model(),
        sae.load_tokenizer(),
        documents,
        output,
        level=level,
        reduce=reduce,
        features=features or None,
        columns=columns or (),
        text_column=text_column,
        context_length=context_length,
        batch_size=batch_size,
        bf16=bf16,
        documents_per_shard=documents_per_shard,
        text=source.recorded(),
        # As torchrun and accelerate tell the processes that they start.
        rank=int(os.environ.get("RANK", 0)),
        world_size=launched(),
    )
    print(f"wrote {table}" if table is not None else f"wrote a share of {output}")
    return 0
