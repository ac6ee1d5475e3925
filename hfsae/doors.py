"""`Doors`: the methods of `SAE` that lead to upper floors, where language models, metrics, the Hub and formats are.

Each imports what it leads to when it is called, so that an SAE alone stays light.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from hfsae.attach import AttachedSAE, FeatureEdit
    from hfsae.evaluation.self_check import SelfCheck
    from hfsae.interop.saebench import SAEBenchView
    from hfsae.modeling import SAE


class Doors:
    """What every `SAE` can also do beside computing."""

    @property
    def _sae(self) -> "SAE":
        """Itself, as what this class is a part of."""
        return cast("SAE", self)

    def load_base_model(self, **kwargs: Any) -> PreTrainedModel:
        """The language model this SAE reads, at the commit it was trained on.

        Args:
            **kwargs: For `AutoModelForCausalLM.from_pretrained`: `dtype`, `device_map`, ...

        Raises:
            ValueError: If the config names no base model.
        """
        from hfsae.language_model import load_base_model

        return load_base_model(self._sae.config, **kwargs)

    def load_tokenizer(self, **kwargs: Any) -> "PreTrainedTokenizerBase":
        """The tokenizer of `load_base_model()`, at the same commit."""
        from hfsae.language_model import load_tokenizer

        return load_tokenizer(self._sae.config, **kwargs)

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

        return tokenize(texts, tokenizer or self.load_tokenizer(), prepend_bos=self._sae.config.prepend_bos)

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
            prompt_length: Says how long the prompt is where the model is called by hand; see `hfsae.attach.attach`.

        Returns:
            A context manager that gives a run whose `features` are those of the model's last forward.

        Example:
            >>> with sae.attach(model) as run:  # doctest: +SKIP
            ...     model(**sae.tokenize("Hello"))
            >>> run.features  # doctest: +SKIP
            SparseFeatures(shape=(1, 1, 12288), active=32)
        """
        from hfsae.attach import attach

        return attach(
            self._sae,
            model,
            splice=splice,
            keep_error=keep_error,
            edit=edit,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
        )

    def self_check(self, model: PreTrainedModel, texts: Any, tokenizer: Any = None, **kwargs: Any) -> "SelfCheck":
        """Says whether this SAE does on a language model what its config says, and if not, what may be wrong.

        Args:
            model: The language model.
            texts: A few texts (a list of strings, some thousand tokens), or what `evaluate_sae` takes.
            tokenizer: For texts; None loads the one of the SAE's language model.
            **kwargs: `max_tokens`, `batch_size`: see `hfsae.evaluation.self_check`.

        Returns:
            An object whose `ok` is the verdict and which prints as an explanation.

        Example:
            >>> print(sae.self_check(model, texts))  # doctest: +SKIP
            measured on 5,120 tokens: L0 32, explained variance 0.4127
            recorded: L0 32, explained variance 0.9351
            This does not fit.
            - Wrong hook point: it fits resid_post.1; set config.hook_point = ... (L0 32, explained variance 0.9332).
        """
        from hfsae.evaluation.self_check import self_check

        return self_check(self._sae, model, texts, tokenizer, **kwargs)

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
        return push_sae(self._sae, repo_id, folder=folder, subfolder=subfolder, **about, **destination)

    def to_saelens(
        self, folder: str | os.PathLike, *, hook_name: str | None = None, hook_name_out: str | None = None
    ) -> Path:
        """Writes the SAE as SAELens 6 loads it (`cfg.json`, `sae_weights.safetensors`); scales are folded in.

        TopK is written as SAELens makes it, with unit decoder rows: one unit of a feature then adds a vector of length
        1 to the language model's activations. All others keep the values of their features.

        Args:
            folder: Where to; made if missing.
            hook_name: TransformerLens' name of the hook point, such as `"blocks.8.hook_resid_post"`; None asks the
                language model's config, or what training recorded.
            hook_name_out: Likewise of the place that a transcoder writes to.

        Raises:
            ValueError: If SAELens has nothing that computes the same, such as TopK transcoders, or a hook point has no
                name there.
        """
        from hfsae.interop.saelens_writer import write

        return write(self._sae, folder, hook_name=hook_name, hook_name_out=hook_name_out)

    def to_sparsify(self, folder: str | os.PathLike) -> Path:
        """Writes a TopK SAE as sparsify and delphi load it, into a subfolder called after the hooked module.

        Returns:
            That subfolder, such as `folder/layers.3.mlp`.

        Raises:
            ValueError: If sparsify has nothing that computes the same, or calls the place by no name.
        """
        from hfsae.interop.sparsify_writer import write

        return write(self._sae, folder)

    def to_saebench(self, *, hook_name: str | None = None) -> "SAEBenchView":
        """A view of the SAE with the interface that SAEBench evaluates: tensors in and out, unit decoder rows.

        Args:
            hook_name: TransformerLens' name of the hook point; None asks the language model's config, or what training
                recorded.

        Raises:
            ValueError: If decoding takes more than features, or what SAEBench asks of the text and the place is not
                known.
        """
        from hfsae.interop.saebench import SAEBenchView

        return SAEBenchView(self._sae, hook_name=hook_name)
