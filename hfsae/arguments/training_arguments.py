"""`SAETrainingArguments`: everything a training run can be told, named after `transformers.TrainingArguments`."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin

from hfsae.arguments.argument_fields import (
    A_CONTEXT,
    BELOW_ONE,
    DEAD_FEATURES,
    EVALUATION,
    LANGUAGE_MODEL,
    NOT_NEGATIVE,
    OPTIMISATION,
    OUTPUT,
    POSITIVE,
    PUBLISHING,
    SAE_ITSELF,
    SAVING,
    SHARE_OF_DOCUMENTS,
    SHARE_OF_RUN,
    TEXT,
    default_of,
    names_where,
    parse_options,
    plain_value,
)
from hfsae.arguments.local_paths import same_argument, with_places_in_full
from hfsae.differences import differences
from hfsae.model_kwargs import checked
from hfsae.suggestions import did_you_mean, names_near_matches

# What is read for calibration unless told otherwise: a part of what is trained on, within bounds.
_CALIBRATION_PART, _LEAST_CALIBRATION, _MOST_CALIBRATION = 16, 8192, 65536


@names_near_matches
@dataclass(kw_only=True)
class SAETrainingArguments:
    """Arguments of `SAETrainer`, of `hfsae train` and of its YAML files. Sizes are in tokens, schedules in steps.

    The help of each argument stands in its metadata (`hfsae train --help` prints it).

    Raises:
        TypeError: On construction, if there is no such argument; names the one that was probably meant.
        ValueError: If an argument is out of range or contradicts another.

    Example:
        >>> from hfsae import SAETrainingArguments
        >>> SAETrainingArguments(output_dir="runs/gpt2", architecture="batch_topk", k=32).total_steps
        977
    """

    output_dir: str = OUTPUT("runs/sae", "Folder for checkpoints, the trained SAE, its card and its plots.")
    overwrite_output_dir: bool = OUTPUT(False, "Whether a folder that holds another run may be written over.")
    resume_from_checkpoint: str | None = OUTPUT(
        None, "A checkpoint folder to go on from, or 'last' for the newest whole one in output_dir."
    )

    model_name_or_path: str | None = LANGUAGE_MODEL(
        None, "Hub id or folder of the language model, of a PEFT adapter, or of a GGUF file."
    )
    model_revision: str | None = LANGUAGE_MODEL(None, "Branch, tag or commit; recorded as a sha.", free_on_resume=True)
    compare_model_name_or_path: str | None = LANGUAGE_MODEL(
        None,
        "Another model with the same tokenizer, such as a fine-tune (name or name@revision; commas for several): a "
        "crosscoder reads hook_point in all of them at once, as the sources base and tuned.",
    )
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = LANGUAGE_MODEL(
        "auto",
        "Precision of the language model; 'auto' is that of its checkpoint, its products being made in bfloat16 on a "
        "GPU or CPU with units for it unless activation_dtype is float32. Evaluation keeps that of the checkpoint.",
    )
    model_device_map: str | None = LANGUAGE_MODEL(
        None,
        "How the language model of a process is spread over the process's devices: auto, balanced, sequential, or "
        "names of modules with devices as JSON, numbered from 0; None puts it where the SAEs are.",
    )
    model_kwargs: dict[str, Any] = LANGUAGE_MODEL(
        dict,
        "More for from_pretrained, as JSON: quantization_config, attn_implementation, gguf_file; what "
        "changes activations is recorded with the SAE.",
    )
    hook_point: str = LANGUAGE_MODEL(
        "resid_post.-1",
        "Where to read: canonical, portable or TransformerLens names, commas, ranges and wildcards; joined by + the "
        "places that one crosscoder reads.",
        per_sae=True,
    )
    target_hook_point: str | None = LANGUAGE_MODEL(
        None,
        "Where a transcoder writes, which predicts activations there (mlp_out.8) from those at hook_point (mlp_in.8); "
        "for several hook points one each, in their order, or one for all.",
        per_sae=True,
    )

    architecture: str = SAE_ITSELF(
        "topk",
        "standard, topk, abs_topk, matching_pursuit, batch_topk, matryoshka, jumprelu, gated; crosscoder, "
        "topk_crosscoder, jumprelu_crosscoder, standard_crosscoder; cross_layer_transcoder, "
        "topk_cross_layer_transcoder, jumprelu_cross_layer_transcoder; or one of your own.",
    )
    expansion_factor: float = SAE_ITSELF(16, "n_features / d_in, where n_features is not given.", POSITIVE)
    n_features: int | None = SAE_ITSELF(None, "Number of features.", POSITIVE)
    k: int = SAE_ITSELF(
        32, "Active features per token: exact for topk, abs_topk; at most for matching_pursuit; else a mean.", POSITIVE
    )
    target_l0: float | None = SAE_ITSELF(
        None,
        "Active features per token that the penalty is steered to; None: k, unless its coefficient is given.",
        POSITIVE,
    )
    sparsity_coefficient: float | None = SAE_ITSELF(
        None,
        "λ of the sparsity penalty (the l1 coefficient), held fixed instead of steering to target_l0.",
        NOT_NEGATIVE,
    )
    sparsity_warmup_fraction: float = SAE_ITSELF(0.05, "Share of the run over which λ rises from 0.", SHARE_OF_RUN)
    architecture_options: dict[str, Any] | str = SAE_ITSELF(
        "{}", 'Further fields of the architecture\'s config, as JSON: \'{"penalty": "l1"}\'.'
    )
    init_from: str | None = SAE_ITSELF(
        None,
        "SAE whose weights are where training starts: a folder, or a Hub repository (org/name/subfolder@revision).",
    )
    decoder_center: Literal["geometric_median", "mean"] = SAE_ITSELF("geometric_median", "Where b_dec starts.")
    init_tokens: int = SAE_ITSELF(
        32768, "Tokens from which scale, centre and thresholds are started.", POSITIVE, per_sae=False
    )

    dataset_name: str | None = TEXT(None, "Hub dataset, local file or folder, or 'python-stdlib'.")
    dataset_config: str | None = TEXT(None, "Configuration of the dataset.")
    dataset_split: str = TEXT("train", "Split to train on.")
    dataset_revision: str | None = TEXT(None, "Branch, tag or commit of the dataset.", free_on_resume=True)
    dataset_data_files: str | None = TEXT(None, "Which files of the dataset to take.")
    activation_cache: str | None = TEXT(
        None, "Folder written by `hfsae cache` from this model and text; training reads it and runs no language model."
    )
    streaming: bool = TEXT(False, "Whether the dataset is read while training instead of prepared first.")
    text_column: str | None = TEXT(None, "Column of the text, where there are several.")
    chat: bool = TEXT(False, "Whether documents are conversations, rendered by the tokenizer's chat template.")
    assistant_only: bool = TEXT(
        True, "Whether of conversations only what the assistant says is trained on, as the chat template marks it."
    )
    context_length: int = TEXT(128, "Tokens per block of text.", A_CONTEXT)
    prepend_bos: bool | None = TEXT(None, "Whether blocks start with BOS; None does as the tokenizer does.")
    mix_documents: bool = TEXT(True, "Whether documents are joined to fill blocks; else each has its own.")
    exclude_special_tokens: bool = TEXT(True, "Whether special tokens are left out of training and metrics.")
    exclude_positions: list[int] = TEXT(lambda: [0], "Positions of each block that are left out likewise.")
    shuffle_documents: bool = TEXT(True, "Whether documents (of no stream), and all blocks, come in random order.")
    shuffle_window_tokens: int | None = TEXT(
        None,
        "Tokens in a window in which activations are shuffled; None: 2**18, at most a tenth of the run; 0: none.",
        NOT_NEGATIVE,
    )
    activation_dtype: Literal["bfloat16", "float32"] = TEXT("bfloat16", "Precision of the shuffled activations.")
    prefetch_batches: int = TEXT(2, "Batches of text tokenised ahead, in a thread.", NOT_NEGATIVE, free_on_resume=True)

    eval_dataset_name: str | None = EVALUATION(
        None, "Text to evaluate on; None holds documents of the dataset out.", free_on_resume=True
    )
    eval_dataset_config: str | None = EVALUATION(None, "Configuration of that dataset.", free_on_resume=True)
    eval_dataset_split: str | None = EVALUATION(
        None, "Split of that dataset; None: the only one, or 'test'.", free_on_resume=True
    )
    calibration_share: float = EVALUATION(0.02, "Share of the documents kept for calibration.", SHARE_OF_DOCUMENTS)
    evaluation_share: float = EVALUATION(0.02, "Share of the documents kept to evaluate on.", SHARE_OF_DOCUMENTS)
    eval_tokens: int = EVALUATION(
        200_000, "Tokens to evaluate on at the end; 0 skips evaluation.", NOT_NEGATIVE, free_on_resume=True
    )
    calibration_tokens: int | None = EVALUATION(
        None,
        "Tokens, of neither training nor evaluation text, for thresholds, mean activations and baselines, read where "
        "the SAE or its evaluation needs them; None: 1/16 of training_tokens, between 8,192 and 65,536. With 0 "
        "thresholds stay as trained, and the evaluation takes the beginning of its own text.",
        NOT_NEGATIVE,
    )

    training_tokens: int = OPTIMISATION(4_000_000, "Tokens to train on, over all processes.", POSITIVE)
    train_batch_tokens: int = OPTIMISATION(4096, "Tokens in a batch, per process.", POSITIVE)
    gradient_accumulation_steps: int = OPTIMISATION(1, "Batches per optimiser step.", POSITIVE)
    lm_batch_sequences: int = OPTIMISATION(32, "Blocks of text per pass of the language model.", POSITIVE)
    learning_rate: float | Literal["auto"] = OPTIMISATION(
        "auto", "Peak learning rate; 'auto' by width and length of run.", per_sae=True
    )
    lr_start: float | None = OPTIMISATION(
        None, "Learning rate of the first step; None: a warm-up that begins at 0.", NOT_NEGATIVE, per_sae=True
    )
    lr_end: float | None = OPTIMISATION(
        None,
        "What a cosine or linear schedule falls to; None: a tenth of lr_start where given, else of the peak.",
        NOT_NEGATIVE,
        per_sae=True,
    )
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = OPTIMISATION(
        "constant", "Course after the warm-up.", per_sae=True
    )
    warmup_steps: float = OPTIMISATION(
        0.02, "Steps of linear warm-up, or a share of the run if below 1.", NOT_NEGATIVE, per_sae=True
    )
    lr_decay_fraction: float = OPTIMISATION(
        0.2, "Share of the run, at its end, over which the rate falls linearly to 0.", SHARE_OF_RUN, per_sae=True
    )
    adam_beta1: float = OPTIMISATION(0.9, "Adam's β1.", BELOW_ONE, per_sae=True)
    adam_beta2: float = OPTIMISATION(0.999, "Adam's β2.", BELOW_ONE, per_sae=True)
    adam_epsilon: float = OPTIMISATION(1e-8, "Adam's ε.", POSITIVE, per_sae=True)
    max_grad_norm: float = OPTIMISATION(1.0, "Norm to clip gradients to; 0 for none.", NOT_NEGATIVE, per_sae=True)
    kl_tokens: float = OPTIMISATION(
        0, "Tokens (or, up to 1, a share of the run) at its end that also keep the model's predictions.", NOT_NEGATIVE
    )
    kl_weight: float = OPTIMISATION(1.0, "How hard predictions pull in them, where the error pulls 1.", POSITIVE)
    sae_placement: Literal["replicate", "spread", "shard"] = OPTIMISATION(
        "replicate",
        "Of several processes: 'replicate' has every SAE in each and averages gradients, 'spread' gives each process "
        "SAEs of its own (and each of its GPUs), 'shard' some features of every SAE; these two "
        "exchange activations.",
    )
    bf16: bool = OPTIMISATION(False, "Whether matrix products run in bfloat16 (autocast); parameters stay float32.")
    use_cpu: bool = OPTIMISATION(False, "Whether to stay on the CPU where there is an accelerator.")
    seed: int = OPTIMISATION(0, "Seed of initial weights, of text order and of shuffling.", NOT_NEGATIVE, per_sae=True)

    revival: Literal["auto", "auxk", "resample", "repoint", "none"] = DEAD_FEATURES(
        "auto",
        "'auto': auxk for abs_topk and matching_pursuit, resample for standard (not transcoders), repoint else.",
    )
    dead_feature_window: int = DEAD_FEATURES(
        10_000_000, "Tokens without firing after which a feature is dead; shorter in a run of under 640 M.", POSITIVE
    )
    auxk_alpha: float = DEAD_FEATURES(1 / 32, "Weight of the auxk loss.", NOT_NEGATIVE)
    resample_every: int | None = DEAD_FEATURES(None, "Tokens between resamplings; None: a tenth of the run.", POSITIVE)
    feature_sampling_window: int = DEAD_FEATURES(1000, "Steps over which feature densities are counted.", POSITIVE)

    logging_steps: int | None = SAVING(None, "Steps between logs; None: a hundredth of the run, at most 50.", POSITIVE)
    save_steps: int = SAVING(500, "Steps between checkpoints; 0 keeps only the last.", NOT_NEGATIVE)
    save_minutes: float | None = SAVING(
        None, "Minutes after which a checkpoint is written whatever the step.", POSITIVE
    )
    save_total_limit: int | None = SAVING(2, "Checkpoints kept; None keeps all.", POSITIVE)
    metric_for_best_model: str | None = SAVING(
        None, "Logged metric (mean over the SAEs) whose best checkpoint is kept too: explained_variance, loss, l0, ..."
    )
    greater_is_better: bool | None = SAVING(
        None, "Whether more of it is better; None: yes for explained_variance, no for everything else."
    )
    report_to: str = SAVING(
        "none", "Trackers, by Accelerate: none, tensorboard, trackio, wandb; commas for several.", on_card=False
    )
    html_report: bool | None = SAVING(
        None,
        "Whether a page with curves, figures and features is written at the end; None: where there is no tracker.",
        on_card=False,
    )
    run_name: str | None = SAVING(None, "Name of the run for trackers; the output folder's by default.", on_card=False)
    disable_tqdm: bool = SAVING(False, "Whether to show no progress bar.", on_card=False)

    push_to_hub: bool = PUBLISHING(False, "Whether the SAEs are pushed to the Hub.")
    hub_model_id: str | None = PUBLISHING(None, "Repository to push to; None: in your account, named as output_dir.")
    hub_strategy: Literal["end", "every_save", "checkpoint"] = PUBLISHING(
        "end", "When to push: after the last step, at every checkpoint too, or that with all a run is resumed from."
    )
    hub_revision: str | None = PUBLISHING(None, "Branch to push to.")
    hub_private_repo: bool | None = PUBLISHING(None, "Whether a repository that is made is private.")
    hub_token: str | None = PUBLISHING(
        None, "Token to push with; better is `hf auth login`. It is written nowhere.", secret=True
    )

    def __post_init__(self):
        if isinstance(self.architecture_options, str):
            self.architecture_options = parse_options(self.architecture_options)
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        for option in fields(self):
            setattr(self, option.name, value := plain_value(option, getattr(self, option.name)))
            if get_origin(option.type) is Literal and value not in (choices := get_args(option.type)):
                raise ValueError(f"{option.name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
            if (range := option.metadata["range"]) is not None:
                range.refuse_unless_fits(option.name, value)
        for name in ("architecture_options", "model_kwargs"):
            if not isinstance(value := getattr(self, name), dict):
                raise ValueError(f"{name} must be names with values, got {value!r}.")
        self.model_kwargs = checked(self.model_kwargs)
        if (rate := self.learning_rate) != "auto" and not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise ValueError(f"learning_rate must be 'auto' or a positive number, got {rate!r}.")

    def _check_together(self) -> None:
        if self.target_l0 is not None and self.sparsity_coefficient is not None:
            raise ValueError("target_l0 steers the sparsity coefficient: give one of the two, not both.")
        if self.calibration_share + self.evaluation_share >= 1:
            raise ValueError(
                f"calibration_share={self.calibration_share} and evaluation_share={self.evaluation_share} leave no "
                "documents to train on: they must add up to less than 1."
            )
        if self.training_tokens < self.train_batch_tokens * self.gradient_accumulation_steps:
            raise ValueError(
                f"training_tokens={self.training_tokens} is less than one step of "
                f"{self.train_batch_tokens} tokens × {self.gradient_accumulation_steps}."
            )
        if self.kl_tokens > self.training_tokens:
            raise ValueError(f"kl_tokens={self.kl_tokens} is more than training_tokens={self.training_tokens}.")
        if self.hub_model_id is not None:
            from huggingface_hub.utils import validate_repo_id  # it takes a while to load, and help is to be quick

            validate_repo_id(self.hub_model_id)

    def of_sae(self, own: Mapping[str, Any]) -> "SAETrainingArguments":
        """These arguments for one SAE of a run, which has some of its own.

        Args:
            own: Arguments of the SAE by name; those of the stream cannot be among them.

        Raises:
            ValueError: If one is unknown, cannot differ between the SAEs of a run, or does not fit.
        """
        for name in own.keys() - PER_SAE:
            if name in OPTIONS:
                raise ValueError(f"{name} is the same for all SAEs of a run: it cannot be given for one of them.")
            raise ValueError(f"unknown argument {name!r} of an SAE.{did_you_mean(name, PER_SAE)}")
        if "target_l0" in own or "sparsity_coefficient" in own:
            own = {"target_l0": None, "sparsity_coefficient": None, **own}  # one of its own replaces the run's other
        if "expansion_factor" in own:
            own = {"n_features": None, **own}
        return replace(self, **own)

    def total_steps_on(self, processes: int) -> int:
        """Optimiser steps of a run on so many processes."""
        per_step = self.train_batch_tokens * self.gradient_accumulation_steps * processes
        return max(1, round(self.training_tokens / per_step))

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a run on one process."""
        return self.total_steps_on(1)

    @property
    def tokens_for_calibration(self) -> int:
        """`calibration_tokens`, where it is None sized to the run."""
        if self.calibration_tokens is not None:
            return self.calibration_tokens
        return min(max(self.training_tokens // _CALIBRATION_PART, _LEAST_CALIBRATION), _MOST_CALIBRATION)

    def stored(self) -> dict[str, Any]:
        """All arguments as plain values, places of this machine in full, less what no file may hold."""
        return with_places_in_full(self._plain())

    def _plain(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in SECRET}

    def given(self) -> dict[str, Any]:
        """The arguments that differ from their defaults, as plain values."""
        values = self._plain()
        return {f.name: values[f.name] for f in fields(self) if f.name in values and values[f.name] != default_of(f)}

    def __repr__(self) -> str:
        """Only the arguments that differ from their defaults."""
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"

    def differing_from(self, other: "SAETrainingArguments") -> dict[str, Any]:
        """The arguments whose values are others there, with the values they have here."""
        values, others = self.stored(), other.stored()
        return {name: value for name, value in values.items() if value != others[name]}

    def refuse_difference(self, before: dict[str, Any], the: str = "The") -> None:
        """Raises if a run that was started with `before` cannot go on bit by bit with these arguments.

        Args:
            before: What `stored` gave for the arguments of the run that is resumed.
            the: How the message begins, where it is about one SAE of many.

        Raises:
            ValueError: Names every argument that differs and matters.
        """
        now, options = json.loads(json.dumps(self.stored())), "architecture_options"
        defaults = {option.name: default_of(option) for option in fields(self)}  # an older version knew fewer
        before = {**defaults, **with_places_in_full(before)}
        # What that run left to a default, which may have been another, is held against the SAE that it saved.
        now[options] = {name: value for name, value in now[options].items() if name in before[options]}
        fixed = [name for name in now if name not in FREE_ON_RESUME]
        mattering = [name for name in fixed if not same_argument(name, before[name], now[name])]
        if differing := differences(before, now, mattering):
            raise ValueError(
                f"{the} checkpoint belongs to a run with other arguments: {'; '.join(differing)}. "
                "Resume with the same, or start a new run in another output_dir."
            )


OPTIONS = {option.name: option for option in fields(SAETrainingArguments)}
"""The arguments by name; what is known of each is its field's metadata, see `argument_fields`."""

PER_SAE = names_where(fields(SAETrainingArguments), "per_sae")
"""What may differ between the SAEs of a run; everything else is of the stream that they share."""

FREE_ON_RESUME = names_where(fields(SAETrainingArguments), "free_on_resume")
"""What may differ between a run and its resumption: it changes nothing that is computed."""

SECRET = names_where(fields(SAETrainingArguments), "secret")
"""What no file and no log may hold."""
