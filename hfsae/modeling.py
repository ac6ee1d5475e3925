"""`SAE`: the class that people hold. It is loaded and saved, runs in a language model, and goes to the Hub.

`hfsae.autoencoder.model` says what it computes, an architecture (`hfsae/architectures/`) which features are active.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from torch import nn
from transformers import PreTrainedModel

from hfsae.autoencoder.another_k import with_k
from hfsae.autoencoder.folding import fold_input_scale
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.strict import refuse_other_tensors
from hfsae.loading import load_sae
from hfsae.notebook import complete_by_dir, completions, html_table
from hfsae.progress import quietly
from hfsae.storage import remove_other_forms, seal, told_as_system_error

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from torch import Tensor
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from hfsae.attachment import AttachedSAE, FeatureEdit
    from hfsae.evaluation.self_check import SelfCheck
    from hfsae.interop.saebench import SAEBenchView

T = TypeVar("T")

# What people use of what a model inherits: the other names are not completed.
_INHERITED = {
    "bfloat16", "config", "cpu", "cuda", "device", "dtype", "eval", "float", "get_memory_footprint", "half",
    "load_state_dict", "name_or_path", "named_buffers", "named_parameters", "num_parameters", "parameters",
    "requires_grad_", "state_dict", "to", "train", "training", "zero_grad",
}  # fmt: skip


class SAE(SparseAutoencoder):
    """A sparse autoencoder: `z = activation(W_e (s·x − b_dec) + b_e)`, `x̂ = (Σ z_i W_dec[i] + b_dec) / s`.

    It takes raw activations and returns raw reconstructions: the scale s is part of the model. Use a class of an
    architecture, or `SAE.from_pretrained` / `SAE.from_config`, which return the class that the config names.

    Stored tensors:

    * `encoder.weight` (n_features, d_in), `encoder.bias` (n_features,)
    * `W_dec` (n_features, d_out), `b_dec` (d_out,)
    * `input_scale` (), or (sources,) of a crosscoder
    * `output_scale` () of transcoders
    * `W_skip` (d_out, d_in) where there is one

    Example:
        >>> import torch
        >>> from hfsae import SAE, TopKSAEConfig
        >>> sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4))
        >>> out = sae(torch.randn(2, 5, 8))
        >>> out.reconstruction.shape, out.features.values.shape[-1] <= 4
        (torch.Size([2, 5, 8]), True)
    """

    # -- loading and saving -----------------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Loads an SAE from a folder or a Hub repository and returns the class that its config names.

        Strict: a repository that holds some other model is refused before its weights are fetched. Missing, unexpected
        or mis-sized tensors are errors that name them. Pickled weights are never read unasked. What other projects
        saved (SAELens, sparsify, dictionary_learning, Gemma Scope, ...; see `hfsae.interop`) is recognised and becomes
        one of ours, with the same features and reconstructions.

        Args:
            pretrained_model_name_or_path: A folder, or a Hub repository such as `"org/gpt2-l8-16x"`.
            *args: Passed on to `PreTrainedModel.from_pretrained`.
            **kwargs: As there: `subfolder`, `revision`, `dtype`, `device_map`, `token`, `cache_dir`,
                `local_files_only`, `output_loading_info`, and config fields to override. SAEs of other projects also
                take `allow_pickle=True`, without which their pickles (`.pt`) are not opened. Weights without a config
                also take `architecture`, such as `"standard"`.

        Returns:
            The SAE in evaluation mode; with `output_loading_info=True` also the (empty) loading report.

        Raises:
            ValueError: If it is not an SAE, or is an SAE of another class than the one called. Likewise if its weights
                do not match its config, hold NaN or infinity, or have a scale that is not positive.
            huggingface_hub.errors.StrictDataclassError: If a config field is given a value it cannot have.
            OSError: If there is nothing to load, or the weights are damaged or something else in their place.
        """
        return load_sae(pretrained_model_name_or_path, *args, wanted=cls, **kwargs)  # type: ignore[return-value]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Writes config and weights (safetensors) into a folder, as `PreTrainedModel.save_pretrained`.

        `SHA256SUMS` beside them says what the weights are; loading holds them against it.

        What was there before stays whole until the new files are.

        Raises:
            OSError: If the disk is full.
            ValueError: With `push_to_hub=True`, which would write over the card: use `push_to_hub(repo_id)`. Likewise
                if its tensors are not those of its class, as of a pruned SAE: nobody could load it.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained does not push: use sae.push_to_hub(repo_id), which writes the card too.")
        if getattr(self, "hf_quantizer", None) is None:  # that has names of its own
            refuse_other_tensors(self, kwargs.get("state_dict") or self.state_dict())
        if not kwargs.get("is_main_process", True):
            super().save_pretrained(save_directory, **kwargs)
            return
        from hfsae.saving import files_at_once

        folder = Path(save_directory)
        with files_at_once(folder) as beside:  # links into the Hub's cache are replaced, not written through
            with quietly(), told_as_system_error(folder):
                super().save_pretrained(beside, **kwargs)
            written = {path.name for path in beside.iterdir()}
        remove_other_forms(folder, written)
        seal(folder)

    def should_save_on_this_rank(self, is_main_process: bool) -> bool:
        """Of several processes, each writes the SAEs that it is asked to; transformers would leave it to the first."""
        return is_main_process

    def fold_input_scale(self, keep: Literal["features", "unit_rows"] = "features") -> Self:
        """Folds `input_scale` (and `output_scale`) into the weights, exactly; the scales become 1.

        Args:
            keep: `"features"` leaves every feature value unchanged and rows of `W_dec` become 1/s as long;
                `"unit_rows"` leaves `W_e` and `W_dec` unchanged and feature values become z/s.

        Returns:
            The SAE itself.

        Raises:
            ValueError: For another `keep`, or with `"unit_rows"` for a transcoder or crosscoder.
        """
        fold_input_scale(self, keep)
        return self

    def with_k(self, k: int, activations: "Tensor | None" = None) -> Self:
        """This SAE with another number of active features a token; it shares the weights, so a change reaches both.

        topk with `hierarchical` is trained for every smaller k. Other SAEs reconstruct worse than those trained with
        that k.

        Args:
            k: Active features a token (of a cross-layer transcoder in each layer).
            activations: (N, d_in) from which batch_topk and what is made of it find the threshold that lets k
                features a token through. The others have no threshold, and take none.

        Returns:
            An SAE of the same class. Its config has the k, and no metrics: they were measured with another.

        Raises:
            ValueError: If the architecture has no k, or k lies outside of 1 to `n_features`. Likewise if activations
                are needed and missing, given and not needed, empty, or not finite.

        Example:
            >>> from hfsae import SAE, TopKSAEConfig
            >>> sae = SAE.from_config(TopKSAEConfig(d_in=8, n_features=32, k=4, hierarchical=True))
            >>> sae.with_k(2).config.k
            2
        """
        return with_k(self, k, activations)

    # -- language models and the Hub ----------------------------------------------------------------------------------
    def load_base_model(self, source: str | None = None, **kwargs: Any) -> PreTrainedModel:
        """The language model this SAE reads, at the commit it was trained on.

        Args:
            source: Of a crosscoder over several models, whose to load; None loads all, as one `SideBySide`.
            **kwargs: For `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, ...

        Raises:
            ValueError: If the config names no base model, or has no such source.
        """
        from hfsae.language_model import load_base_model

        return load_base_model(self.config, source, **kwargs)

    def load_tokenizer(self, **kwargs: Any) -> "PreTrainedTokenizerBase":
        """The tokenizer of `load_base_model()`, at the same commit."""
        from hfsae.language_model import load_tokenizer

        return load_tokenizer(self.config, **kwargs)

    def tokenize(
        self, texts: str | Sequence[str], tokenizer: "PreTrainedTokenizerBase | None" = None
    ) -> "BatchEncoding":
        """Makes tokens of prompts as this SAE wants them: begun as the text was that it was trained on.

        Args:
            texts: A prompt or several; shorter ones are padded on the side that the tokenizer's `padding_side` names.
            tokenizer: The language model's; None loads it.

        Returns:
            `input_ids` and `attention_mask`, int64 tensors (texts, tokens), as `model(**...)` and `generate` take
            them. They begin with BOS (or CLS) where the config's `prepend_bos` says so, or where it says nothing and
            the tokenizer does that itself.

        Raises:
            ValueError: If a prompt has no token, or BOS is wanted of a tokenizer that has none.

        Example:
            >>> model.generate(**sae.tokenize("The Eiffel Tower is in", tokenizer))  # doctest: +SKIP
        """
        from hfsae.data.prompts import tokenize

        return tokenize(texts, tokenizer or self.load_tokenizer(), prepend_bos=self.config.prepend_bos)

    def attach(
        self,
        model: nn.Module,
        *,
        splice: bool = False,
        keep_error: bool = False,
        edit: "FeatureEdit | None" = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        prompt_length: int | None = None,
    ) -> "AbstractContextManager[AttachedSAE]":
        """Runs a language model with this SAE reading, or spliced in.

        Args:
            model: Any Hugging Face causal LM that has the config's `hook_point`, or a wrapper around one.
            splice: Whether the activations are replaced by the reconstruction; otherwise they are only read.
            keep_error: With `splice`, whether the error x − x̂ is added back, so that the model's output stays as it is
                until features are edited.
            edit: With `splice`, gets the features and returns those to be spliced in instead.
            tokenizer: Says which tokens are special; without it the model's config does.
            prompt_length: Says how long the prompt is where the model is called by hand; see `hfsae.attach`.

        Returns:
            A context manager that gives a run whose `features` are those of the model's last forward.

        Example:
            >>> with sae.attach(model) as run:  # doctest: +SKIP
            ...     model(**sae.tokenize("Hello"))
            >>> run.features  # doctest: +SKIP
            SparseFeatures(shape=(1, 1, 12288), active=32)
        """
        from hfsae.attachment import attach

        return attach(
            model,
            self,
            splice=splice,
            keep_error=keep_error,
            edit=edit,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        folder: str | os.PathLike | None = None,
        subfolder: str | None = None,
        license: str | None = None,
        language: str | list[str] | None = None,
        **destination: Any,
    ) -> "CommitInfo":
        """Publishes the SAE with its card, in one atomic commit; the repository and the branch are made when missing.

        What fails for a passing reason is tried again; pushing once more after a failure sends nothing twice. Figures
        that were measured on other weights are marked as stale.

        Args:
            repo_id: `"org/gpt2-l8-16x"`.
            folder: What training saved, whose log and card go along.
            subfolder: Folder in the repository, whose root card then lists all that are there.
            license: For the card, such as `"apache-2.0"`; without it one that stands there already stays.
            language: ISO 639 codes of the text, such as `"en"`; likewise.
            **destination: `revision` (a branch), `create_pr`, `private`, `token` (not kept anywhere), `tag`,
                `commit_message`, `retries`: see `hfsae.hub.repository.Destination`.

        Returns:
            What `huggingface_hub` says of the commit.

        Raises:
            ValueError: If the arguments contradict each other, or the card on the Hub cannot be read.
            hfsae.hub.PushError: If the Hub refuses or cannot be reached: what to do, in one sentence.
        """
        from hfsae.hub import push_sae

        about = {"license": license, "language": language}
        return push_sae(self, repo_id, folder=folder, subfolder=subfolder, **about, **destination)

    # -- old names, for one version ---------------------------------------------------------------------------------
    def self_check(self, *args: Any, **kwargs: Any) -> "SelfCheck":
        """Deprecated: use `hfsae.self_check(sae, model, texts)`."""
        from hfsae.evaluation.self_check import self_check

        return _renamed("self_check(sae, ...)", self_check)(self, *args, **kwargs)

    def to_saelens(self, folder: str | os.PathLike, **kwargs: Any) -> Path:
        """Deprecated: use `hfsae.export_sae(sae, folder, "saelens")`."""
        from hfsae.interop import export_sae

        return _renamed('export_sae(sae, folder, "saelens")', export_sae)(self, folder, "saelens", **kwargs)

    def to_sparsify(self, folder: str | os.PathLike) -> Path:
        """Deprecated: use `hfsae.export_sae(sae, folder, "sparsify")`."""
        from hfsae.interop import export_sae

        return _renamed('export_sae(sae, folder, "sparsify")', export_sae)(self, folder, "sparsify")

    def to_saebench(self, **kwargs: Any) -> "SAEBenchView":
        """Deprecated: use `hfsae.interop.SAEBenchView(sae)`."""
        from hfsae.interop import SAEBenchView

        return _renamed("interop.SAEBenchView(sae)", SAEBenchView)(self, **kwargs)

    # -- what is shown of it ------------------------------------------------------------------------------------------
    def __repr__(self) -> str:
        config = self.config
        sizes = {"d_in": config.d_in, "d_out": config.d_out, "n_features": config.n_features}
        if config.d_out == config.d_in:
            del sizes["d_out"]
        if hasattr(config, "k"):
            sizes["k"] = config.k
        shape = ", ".join(f"{name}={size}" for name, size in sizes.items())
        dtype = str(self.encoder.weight.dtype).removeprefix("torch.")
        return f"{type(self).__name__}({shape}, {config.reads_and_writes}, {dtype} on {self.device})"

    def _repr_html_(self) -> str:
        weights = {"weights": f"{str(self.encoder.weight.dtype).removeprefix('torch.')} on {self.device}"}
        return html_table([*self.config.summary().items(), *weights.items()], caption=type(self).__name__)

    def __dir__(self) -> list[str]:
        names = set(super().__dir__()) - {"all_tied_weights_keys", "kernel_config", "loss_type"}
        return completions(self, PreTrainedModel, _INHERITED, names)


def _renamed(now: str, function: Callable[..., T]) -> Callable[..., T]:
    """The function in whose place an old method stands, after a warning that names it."""
    warnings.warn(f"this method goes in the next version: use hfsae.{now}.", FutureWarning, stacklevel=3)
    return function


complete_by_dir(SAE)
