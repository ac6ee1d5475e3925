"""The activation cache of a run: made from the arguments of a training run, and held against the arguments of the runs
that read it.
"""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfsae.arguments.local_paths import named_together, parts_of, with_places_in_full
from hfsae.arguments.sae_settings import hook_points_from_arguments
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data import CachedActivations, CacheDescription, Writers, remove_cache, write_cache
from hfsae.data.text_source import ARGUMENTS
from hfsae.differences import differences
from hfsae.folders import new_folder
from hfsae.functional.precision import own_precision
from hfsae.hooks import SideBySide
from hfsae.in_model import names_of
from hfsae.inputs import streams
from hfsae.inputs.base_model import BaseModel, model_before_loading, open_base_model
from hfsae.inputs.fingerprints import text_digest
from hfsae.inputs.text_splits import Texts, load_texts
from hfsae.language_model import Origin, find
from hfsae.model_classes import without_weights
from hfsae.parallel.dealing import own_devices
from hfsae.parallel.launching import start_accelerator
from hfsae.parallel.process_watch import ProcessWatch
from hfsae.storage import ODD, DamagedFileError, naming

logger = logging.getLogger(__name__)

# Arguments that decide which rows a cache holds and what they mean: whoever trains from it must ask for the same.
_DECISIVE = (
    "model_name_or_path", "model_revision", "compare_model_name_or_path", "model_kwargs",
    *(name for name in ARGUMENTS.values() if name != "streaming"),
    "context_length", "prepend_bos", "exclude_special_tokens", "exclude_positions", "activation_dtype",
    "calibration_tokens",
)  # fmt: skip
# Arguments that change the order of rows or their last digits: written down, and free for whoever trains.
_RECORDED = ("hook_point", "streaming", "shuffle_documents", "seed", "lm_batch_sequences", "model_dtype", "bf16")
# Arguments that caches of earlier versions do not tell.
_LATER = {*ARGUMENTS.values(), "compare_model_name_or_path"}
# Fields of a language model's config that depend on how it was loaded.
_OF_A_COPY = {"_name_or_path", "architectures", "dtype", "transformers_version"}


@own_precision()
def cache_activations(
    args: SAETrainingArguments,
    model: PreTrainedModel | str | None = None,
    *,
    train_dataset: Any = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    shard_rows: int | None = None,
) -> CacheDescription:
    """Writes the activations that a training run with these arguments reads into `args.output_dir`.

    One pass of the language model serves every hook point. An interrupted call is taken up by the same call and ends
    with the same bytes. Several processes (`torchrun`), also of several machines with one file system, share out the
    shards and write the bytes that one would write. As many as one likes go on.
    `SAETrainingArguments(activation_cache=...)` then trains from the folder. On one process the SAE is equal, bit for
    bit, to one trained from the language model with the same `seed`.

    Args:
        args: A run's arguments; those of the SAE and its optimiser do not matter.
        model: A causal LM or its name; None takes `args.model_name_or_path`.
        train_dataset: Text, as `SAETrainer` takes it; None loads `args.dataset_name`.
        processing_class: The tokenizer; None loads the model's.
        shard_rows: Rows in a file; None for a quarter of a gigabyte.

    Returns:
        What the cache says of itself.

    Raises:
        FileExistsError: If the folder holds another cache.
        OSError: If the disk has too little space.
        ValueError: If the arguments fit neither each other nor the model.
        ProcessLostError: If another process that writes has ended; names it.

    Example:
        >>> args = SAETrainingArguments(
        ...     model_name_or_path="openai-community/gpt2",
        ...     hook_point="resid_post.8",
        ...     dataset_name="NeelNanda/pile-10k",
        ...     output_dir="activations/gpt2",
        ... )
        >>> cache_activations(args).rows  # doctest: +SKIP
        4194304
    """
    with new_folder(args.output_dir):
        accelerator = start_accelerator(dataclasses.replace(args, report_to="none"))
        with ProcessWatch(accelerator, lambda: "The same command goes on with the cache."):
            _write(args, model, train_dataset, processing_class, shard_rows, accelerator)
    return CacheDescription.read(args.output_dir)


def _write(
    args: SAETrainingArguments,
    model: PreTrainedModel | str | None,
    train_dataset: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    shard_rows: int | None,
    accelerator: Accelerator,
) -> None:
    if (planned := model_before_loading(args, model)) is not None:
        hook_points_from_arguments(args, planned.model)
    texts = load_texts(args, train_dataset, None)
    base = open_base_model(args, model, tokenizer, accelerator.device, own_devices(accelerator))
    places = names_of(hook_points_from_arguments(args, base.model))
    # Of all the text, whoever writes: several share out the shards, not the documents.
    blocks = streams.training_blocks(args, texts.train, base)
    source = streams.model_source(args, base, blocks, places)
    if args.overwrite_output_dir and accelerator.is_main_process:
        remove_cache(args.output_dir)

    def other_text() -> dict[str, Tensor]:
        return streams.calibration_rows(args, base, texts, places)

    try:
        write_cache(
            source,
            args.output_dir,
            rows=_rows_read(args),
            made_from=_described(args, base, texts, blocks.prepend_bos),
            dtype=getattr(torch, args.activation_dtype),
            held_out=None if texts.calibration is None else other_text,
            shard_rows=shard_rows,
            disable_tqdm=args.disable_tqdm,
            writers=_writers(accelerator),
        )
    finally:
        source.close()


def _writers(accelerator: Accelerator) -> Writers:
    def of_first(names: list[str]) -> list[str]:
        return broadcast_object_list([names])[0]

    if accelerator.num_processes == 1:
        return Writers()
    return Writers(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, of_first)


def _rows_read(args: SAETrainingArguments) -> int:
    """The rows that a run on one process reads: it fills its last window whole, though it may end within it."""
    trained = args.total_steps * args.gradient_accumulation_steps * args.train_batch_tokens
    window = streams.window_tokens(args, processes=1) or args.train_batch_tokens
    window = max(1, window // args.train_batch_tokens) * args.train_batch_tokens
    return -(-trained // window) * window


def _described(args: SAETrainingArguments, base: BaseModel, texts: Texts, prepend_bos: bool) -> dict[str, Any]:
    """What the rows are made from: arguments, the model's commit and config, the text's digest."""
    stored = args.stored()
    arguments = {name: stored[name] for name in (*_DECISIVE, *_RECORDED)}
    arguments["model_name_or_path"], arguments["model_revision"] = base.origin.given if base.origin else (None, None)
    if arguments["compare_model_name_or_path"] is not None:
        arguments["compare_model_name_or_path"] = named_together([origin.given for origin in base.others if origin])
    arguments["prepend_bos"] = prepend_bos
    return {
        "arguments": arguments,
        "base_model": dataclasses.asdict(base.origin) if base.origin else None,
        "folder": os.path.abspath(args.output_dir),
        "text_digest": text_digest(args, texts.train),
        "model_config": _architecture(base.model),
        "compared": _compared(base),
    }


def _compared(base: BaseModel) -> list[dict[str, Any]] | None:
    """Of models side by side what each is called, where it comes from, and its config; None of one model."""
    if not isinstance(base.model, SideBySide):
        return None
    origins = zip(base.model.models.items(), [base.origin, *base.others], strict=True)
    return [
        {
            "name": name,
            "base_model": dataclasses.asdict(origin) if origin else None,
            "model_config": _architecture(model),
        }
        for (name, model), origin in origins
    ]


def _architecture(model: PreTrainedModel) -> dict[str, Any]:
    """A model's config as it will be read from JSON, without what may differ between two copies of one model."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _OF_A_COPY}
    return json.loads(json.dumps(config))


def _made_from(description: CacheDescription, folder: Path) -> dict[str, Any]:
    """What a cache says of where its rows come from, with folders where they were moved together with it.

    Raises:
        DamagedFileError: If it says that in another way than this version reads.
    """
    said = description.made_from_here(folder)
    told = said.get("base_model") or {}
    fields = {f.name for f in dataclasses.fields(Origin)}
    kinds = {"arguments": dict, "base_model": dict | None, "model_config": dict, "text_digest": str}
    odd = [name for name, kind in kinds.items() if not isinstance(said.get(name), kind)]
    if not odd:
        odd = sorted(set(_DECISIVE) - _LATER - said["arguments"].keys())
    if not odd and told and ("name" not in told or told.keys() - fields):
        odd = ["base_model"]
    if not odd and not _is_of_models(said.get("compared")):
        odd = ["compared"]
    if odd:
        raise DamagedFileError(
            f"{folder} says what it was made from in a way that this version of hfsae does not read "
            f"({', '.join(odd)}): another version wrote it. Make it again with `hfsae cache`, or use that version."
        )
    return said


def _is_of_models(compared: Any) -> bool:
    """Whether a record can be what `_compared` made."""
    wanted = {"name", "base_model", "model_config"}
    return compared is None or (
        isinstance(compared, list) and all(isinstance(one, dict) and one.keys() == wanted for one in compared)
    )


def _are_the_same_models(asked: str, made: str) -> bool:
    """Whether models are asked for that a cache was made with; without a revision, at whichever it was made with."""
    wanted, there = parts_of(asked), parts_of(made)
    return len(wanted) == len(there) and all(
        name == known and (revision is None or find(name, revision).given[1] == commit)
        for (name, revision), (known, commit) in zip(wanted, there, strict=True)
    )


class Cache:
    """The cache that a training run reads.

    Args:
        args: The run's arguments.

    Attributes:
        args: The same, with what they leave open (None) taken from the cache.

    Raises:
        FileNotFoundError: If there is no cache.
        DamagedFileError: If it does not say what it was made from, as this version reads that.
        ValueError: If it was made with other arguments; says which.
    """

    def __init__(self, args: SAETrainingArguments):
        assert args.activation_cache is not None
        self._folder = Path(args.activation_cache)
        self._description = CacheDescription.read(self._folder)
        self._made_from = _made_from(self._description, self._folder)
        # What an earlier version's cache does not tell had one value alone, which is today's default.
        defaults = {option.name: option.default for option in dataclasses.fields(args)}
        self._made_with: dict[str, Any] = {
            **{name: defaults[name] for name in _LATER},
            **with_places_in_full(self._made_from["arguments"]),
        }
        self.args = self._adopt(args)

    def _adopt(self, args: SAETrainingArguments) -> SAETrainingArguments:
        stored = args.stored()
        asked = {name: stored[name] for name in _DECISIVE if stored[name] is not None}
        if "model_revision" in asked and asked["model_revision"] != self._made_with["model_revision"]:
            model = self._made_with["model_name_or_path"]
            asked["model_revision"] = find(model, asked["model_revision"], args.model_kwargs).given[1]
        compared = "compare_model_name_or_path"
        if compared in asked and _are_the_same_models(asked[compared], self._made_with[compared] or ""):
            asked[compared] = self._made_with[compared]
        if differing := differences(self._made_with, asked, names=asked):
            raise ValueError(
                f"the activation cache {self._folder} was made for another run: {'; '.join(differing)}. Train with "
                "its arguments, or make another with `hfsae cache`."
            )
        return dataclasses.replace(args, **{name: self._made_with[name] for name in _DECISIVE})

    @property
    def prepend_bos(self) -> bool:
        """Whether its blocks of text began with BOS."""
        return self._made_with["prepend_bos"]

    def skeleton(self) -> BaseModel:
        """The language model without weights: enough to name hook points."""
        compared = self._made_from.get("compared")
        with naming(f"what the activation cache {self._folder} says of its language model", (*ODD, ValueError)):
            models = {
                one["name"]: without_weights(AutoConfig.for_model(**one["model_config"]))
                for one in compared or [{"name": "", "model_config": self._made_from["model_config"]}]
            }
            said = [one["base_model"] for one in compared or [self._made_from]]
            first, *others = [Origin(**origin) if origin else None for origin in said]
        model = SideBySide(models) if compared else next(iter(models.values()))
        return BaseModel(model, None, first, others=tuple(others))

    def source(self, places: list[str], accelerator: Accelerator) -> CachedActivations:
        """This process's part of the rows.

        Raises:
            ValueError: If the cache is not whole, or lacks a place.
        """
        rows, wanted = self._description.rows, self.args.training_tokens
        if wanted > rows:
            logger.warning(
                "the run reads %s tokens and the cache holds %s: it is read more than once", f"{wanted:,}", f"{rows:,}"
            )
        return CachedActivations(
            self._folder, places, rank=accelerator.process_index, world_size=accelerator.num_processes
        )

    def refuse_other(self, base: BaseModel, texts: Texts) -> None:
        """Raises if the SAE would be measured on another model or another text than it was trained on.

        Raises:
            ValueError: Says which.
        """
        of_each = [one["model_config"] for one in _compared(base) or []]
        known = [one["model_config"] for one in self._made_from.get("compared") or []]
        if _architecture(base.model) != self._made_from["model_config"] or of_each != known:
            raise ValueError(
                f"the activation cache {self._folder} was made with another language model than the one given now: "
                "their configs differ. Give the same model, or set eval_tokens to 0 to train without it."
            )
        if text_digest(self.args, texts.train) != self._made_from["text_digest"]:
            raise ValueError(
                f"the activation cache {self._folder} was made from another text than the one that is named or given "
                "now: its documents differ. Give the same text, or set eval_tokens to 0 to train without it."
            )
