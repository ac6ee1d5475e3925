"""`SAEConfig`: what every sparse autoencoder stores beside its weights.

The config holds all that is needed to use an SAE without asking its author:

* the language model and its commit
* the place in it
* the context it was trained on
* which tokens were left out
* how it was trained and what was measured

Architectures add their own fields in `hfsae/architectures/`.
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from hfsae.notebook import complete_by_dir, completions, html_table
from hfsae.suggestions import did_you_mean

MODEL_TYPE_PREFIX = "hfsae_"
"""What the `model_type` of every architecture begins with; its name follows."""

# What joins the names of places that one crosscoder reads.
_TOGETHER = "+"

LANGUAGE_MODEL = (
    *("base_model", "base_model_revision", "base_model_adapter", "base_model_adapter_revision"),
    "base_model_kwargs",
)
"""The fields that say which language model an SAE reads."""

# A key written by a newer hfsae must survive a load and a save; the same key typed by a person is a mistake.
_LOADING: ContextVar[bool] = ContextVar("hfsae_config_is_being_loaded", default=False)

# What transformers itself passes to a config's constructor besides declared fields.
_TRANSFORMERS_KEYS = {
    "name_or_path",
    "torch_dtype",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "num_labels",
    "transformers_version",
    "_commit_hash",
    "_name_or_path",
}

# The figures that say most about an SAE.
_HEADLINE = ("l0", "explained_variance", "loss_recovered", "dead_fraction")

# What people use of what a config inherits.
_INHERITED = {"from_pretrained", "save_pretrained", "to_dict", "to_json_string", "name_or_path", "update"}

# What `repr` says first, and of what it says only that it is there.
_SAID_FIRST = ("d_in", "n_features", "k")
_SAID_SHORT = ("training", "metrics", "base_model_kwargs", "source_models")


def places_in(place: str) -> list[str]:
    """The names of places that are joined in one, as a crosscoder reads them; of any other place its own.

    Example:
        >>> places_in("resid_post.1+resid_post.2")
        ['resid_post.1', 'resid_post.2']
    """
    return place.split(_TOGETHER)


def join_places(places: Iterable[str]) -> str:
    """The opposite of `places_in`."""
    return _TOGETHER.join(places)


@strict
class SAEConfig(PreTrainedConfig):
    """Fields shared by every sparse autoencoder (SAE).

    Types are checked on construction, on assignment, on load and on save. An unknown name is an error when
    constructing and is kept when loading, so that files of newer versions survive a round trip.

    Args:
        d_in: Size of the activations that are read.
        n_features: Number of features. Give this or `expansion_factor`.
        expansion_factor: `n_features / d_in`, accepted when constructing, checked against `n_features`, not stored.
        d_out: Size of the activations that are written; `d_in` unless the SAE is a transcoder.
        subtract_b_dec: Whether `b_dec` is subtracted before encoding. It is always added after decoding.
        input_transform: What happens to an activation before it is scaled. None: nothing. `"center"`: its mean over
            `d_in` is removed (language models whose weights were centred). `"layer_norm"`: its mean is removed, and it
            is divided by the unbiased standard deviation + 1e-5. `"constant_norm"`: it is multiplied by `√d_in / ‖x‖`.
            All are undone on the way out where the activations are known.
        rescale_by_decoder_norm: Whether features are selected and reported at `pre-activation × ‖W_dec row‖`, and
            written along unit rows.
        aligned: Whether training keeps the product of each feature's encoder row and decoder row at 1. For what writes
            where it reads.
        skip: Whether a linear map `W_skip` from input to output is added to the reconstruction (transcoders).
        scale_inputs: Whether training sets `input_scale` to `√d_in / mean ‖x‖`; otherwise it stays 1.
        base_model: Hub id of the language model; in a local run the folder it came from, as `./folder` or an absolute
            path, which no card repeats. None when it came from neither.
        base_model_revision: Commit sha of that model.
        base_model_adapter: Hub id or folder of the PEFT adapter that the language model carried, likewise.
        base_model_adapter_revision: Commit sha of that adapter.
        base_model_kwargs: What `from_pretrained` of the language model was given that changes activations:
            `quantization_config`, `attn_implementation`, `gguf_file`.
        hook_point: Where activations are read, in canonical form: `"transformer.h.8.output"`.
        target_hook_point: Where a transcoder writes; None for an autoencoder, which writes where it reads.
        context_length: Tokens per block of text in training.
        prepend_bos: Whether blocks of text started with the tokenizer's BOS token, or CLS where it has no BOS.
        exclude_special_tokens: Whether special tokens were left out of training and of every metric.
        exclude_positions: Positions of each block that were left out likewise.
        training: Summary of the training run, as the card shows it.
        metrics: Measured metrics with their protocol, as `hfsae.evaluate_sae` returns them.
        defined_in: The module that defines the architecture, so that whoever lacks it learns what to install; None for
            hfsae's own. Set by the class itself.

    Raises:
        ValueError: If a size is not positive, sizes contradict each other, or a field name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type, or values do not go together.

    Example:
        >>> from hfsae import TopKSAEConfig
        >>> TopKSAEConfig(d_in=768, expansion_factor=16, k=32).n_features
        12288
    """

    model_type = "hfsae"
    # Sizes have no default that is valid: asked by the versions of transformers that make an empty config when saving.
    has_no_defaults_at_init = True

    d_in: int = 0
    n_features: int = 0
    d_out: int = 0
    subtract_b_dec: bool = True
    input_transform: Literal["none", "center", "layer_norm", "constant_norm"] = "none"
    rescale_by_decoder_norm: bool = False
    aligned: bool = False
    skip: bool = False
    scale_inputs: bool = True
    base_model: str | None = None
    base_model_revision: str | None = None
    base_model_adapter: str | None = None
    base_model_adapter_revision: str | None = None
    base_model_kwargs: dict[str, Any] | None = None
    hook_point: str | None = None
    target_hook_point: str | None = None
    context_length: int | None = None
    prepend_bos: bool | None = None
    exclude_special_tokens: bool = True
    exclude_positions: list[int] = field(default_factory=lambda: [0])
    training: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    defined_in: str | None = None

    if TYPE_CHECKING:  # checkers of types take it for a field, which is how it is given
        expansion_factor: float = 0.0

    def __post_init__(self, **kwargs: Any):
        expansion_factor = kwargs.pop("expansion_factor", None)
        if not _LOADING.get():
            self._refuse_unknown(kwargs)
        module = type(self).__module__
        self.defined_in = None if module.partition(".")[0] == "hfsae" else module
        self._resolve_sizes(expansion_factor)
        super().__post_init__(**kwargs)

    def _refuse_unknown(self, given: dict[str, Any]) -> None:
        known = {f.name for f in fields(self)} | {"expansion_factor"}
        for name in sorted(given.keys() - _TRANSFORMERS_KEYS):
            raise ValueError(f"{type(self).__name__} has no field {name!r}.{did_you_mean(name, known)}")

    def _resolve_sizes(self, expansion_factor: float | None) -> None:
        """Fills `n_features` and `d_out` in from what was given, so that the stored config says everything."""
        if expansion_factor is not None:
            if isinstance(expansion_factor, bool) or not isinstance(expansion_factor, int | float):
                raise ValueError(f"expansion_factor must be a number, got {expansion_factor!r}.")
            n_features = round(self.d_in * expansion_factor)
            if self.n_features not in (0, n_features):
                raise ValueError(
                    f"n_features={self.n_features} contradicts expansion_factor={expansion_factor}: "
                    f"{expansion_factor} × d_in={self.d_in} is {n_features}. Give one of the two."
                )
            self.n_features = n_features
        self.d_out = self.d_out or self.d_in
        self.validate_sizes()  # first of all: other checks compare with these

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """Builds a config from stored keys, keeping those this version does not know."""
        token = _LOADING.set(True)
        try:
            return super().from_dict(config_dict, **kwargs)
        finally:
            _LOADING.reset(token)

    if not TYPE_CHECKING:

        @property
        def expansion_factor(self) -> float:
            """`n_features / d_in`."""
            return self.n_features / self.d_in

    @property
    def input_widths(self) -> list[int]:
        """Sizes of the parts of what is read that have a scale of their own, one behind the other."""
        return [self.d_in]

    @property
    def output_widths(self) -> list[int]:
        """Sizes of the parts of the output that have a scale of their own, one behind the other."""
        return [self.d_out]

    @property
    def source_places(self) -> list[str | None]:
        """Where each of those parts is read; of a crosscoder several places."""
        return [self.hook_point]

    @property
    def target_places(self) -> list[str | None]:
        """The place to which each part of the output goes."""
        return [self.target_hook_point or self.hook_point]

    @property
    def is_crosscoder(self) -> bool:
        """Whether what is read has several sources, each with a reconstruction of its own."""
        return False

    @property
    def models_by_source(self) -> dict[str, dict[str, Any]]:
        """Of a crosscoder over several language models, what is recorded of that of each source; else empty."""
        return {}

    def language_model_of(self, source: str | None = None) -> dict[str, Any]:
        """What is recorded of the language model of a source, by the names of its fields; without one, of the first.

        Raises:
            ValueError: If there is no such source.
        """
        names = list(getattr(self, "source_names", []))
        if source is not None and source not in names:
            known = ", ".join(names) or "none: it reads one place of one model"
            raise ValueError(f"this SAE has no source {source!r}; it has {known}.{did_you_mean(source, names)}")
        adapter = (self.base_model_adapter, self.base_model_adapter_revision)
        own = zip(
            LANGUAGE_MODEL,
            (self.base_model, self.base_model_revision, *adapter, self.base_model_kwargs),
            strict=True,
        )
        said = self.models_by_source.get(source or "") or dict(own)
        return {name: said.get(name) for name in LANGUAGE_MODEL}

    @property
    def named_models(self) -> list[str]:
        """Every language model and adapter that is named, each once."""
        records = list(self.models_by_source.values()) or [self.language_model_of()]
        names = [record.get(field) for record in records for field in ("base_model", "base_model_adapter")]
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def has_sides(self) -> bool:
        """Whether there are several reconstructions, each with figures of its own."""
        return self.is_crosscoder or self.is_cross_layer

    @property
    def is_cross_layer(self) -> bool:
        """Whether what is read are the layers of a model, and features of each write at it and at all later ones."""
        return False

    @classmethod
    def needs_target_l0(cls, options: Mapping[str, Any]) -> bool:
        """Whether the loss of SAEs with such fields, by name, needs a number of active features to aim at."""
        return False

    @property
    def is_transcoder(self) -> bool:
        """Whether the SAE predicts activations at another place than the one it reads."""
        return self.target_hook_point is not None and self.target_hook_point != self.hook_point

    # Methods named validate_* are run by @strict after construction and before every save.
    def validate_sizes(self):
        if self.d_in < 1:
            raise ValueError(f"d_in must be a positive number of dimensions, got {self.d_in}.")
        if self.n_features < 1:
            raise ValueError(
                f"n_features must be positive, got {self.n_features}. Give n_features or a positive expansion_factor."
            )
        if self.d_out < 1:
            raise ValueError(f"d_out must be a positive number of dimensions, got {self.d_out}.")

    def validate_output(self):
        if self.d_out != self.d_in and not self.is_transcoder:
            raise ValueError(
                f"an autoencoder writes what it reads, got d_out={self.d_out} and d_in={self.d_in}. "
                "Set target_hook_point for a transcoder, or leave d_out out."
            )
        if self.d_out != self.d_in and self.subtract_b_dec:
            raise ValueError(
                f"subtract_b_dec=True needs d_out == d_in, got d_out={self.d_out} and d_in={self.d_in}: "
                "b_dec lives in the output space. Set subtract_b_dec=False."
            )
        if self.is_transcoder and self.input_transform != "none":
            raise ValueError(
                f"input_transform={self.input_transform!r} is undone on the way out, which has no meaning for a "
                "transcoder, whose output is another activation. Use input_transform='none'."
            )

    def validate_alignment(self):
        if self.aligned and self.is_transcoder:
            raise ValueError(
                "aligned=True holds what a feature reads against what it writes: two places, in a transcoder. Leave "
                "it out."
            )

    def validate_positions(self):
        if any(position < 0 for position in self.exclude_positions):
            raise ValueError(f"exclude_positions counts from the start of a block, got {self.exclude_positions}.")

    # -- what is shown of it ------------------------------------------------------------------------------------------
    @property
    def architecture(self) -> str:
        """`"topk"`, ...: the name that training and the catalogue use."""
        return self.model_type.removeprefix(MODEL_TYPE_PREFIX)

    @property
    def reads_and_writes(self) -> str:
        """`"reads transformer.h.8.output of openai-community/gpt2"`, and where a transcoder writes."""
        if self.hook_point is None and self.base_model is None:
            return "reads a place that is not recorded"
        writes = f", writes {self.target_hook_point}" if self.is_transcoder else ""
        return f"reads {self.hook_point or 'an unnamed place'}{writes} of {self.base_model or 'an unnamed model'}"

    def summary(self) -> dict[str, str]:
        """What the SAE is, where it reads, what it was trained on and what was measured, each in a few words."""
        revision = f" @ {self.base_model_revision[:12]}" if self.base_model_revision else ""
        adapter = f" with the adapter {self.base_model_adapter}" if self.base_model_adapter else ""
        models = [record.get("base_model") or "not recorded" for record in self.models_by_source.values()]
        facts = {
            "architecture": f"{self.architecture}, defined in {self.defined_in}"
            if self.defined_in
            else self.architecture,
            "features": f"{self.n_features:,} ({self.expansion_factor:g}x of d_in = {self.d_in})",
            "reads": self.hook_point or "not recorded",
            "of": ", ".join(models) or f"{self.base_model or 'not recorded'}{revision}{adapter}",
        }
        if self.is_transcoder:
            facts["writes"] = f"{self.target_hook_point} (d_out = {self.d_out})"
        training, metrics = self.training or {}, self.metrics or {}
        if "n_tokens" in training:
            text = training.get("dataset") or "text that was given as an object"
            facts["trained on"] = f"{training['n_tokens']:,} tokens of {text}"
        measured = [f"{name} {metrics[name]:.4g}" for name in _HEADLINE if metrics.get(name) is not None]
        facts["measured"] = ", ".join(measured) or "not yet: `hfsae eval`"
        return facts

    def __repr__(self) -> str:
        """The constructor's call, less what has its default; long records are only named."""
        given = {option.name: getattr(self, option.name) for option in fields(self) if not self._is_default(option)}
        first = {name: getattr(self, name) for name in _SAID_FIRST if hasattr(self, name)}
        if self.d_out == self.d_in:
            given.pop("d_out", None)
        said = [f"{name}={_short(name, value)}" for name, value in {**first, **given}.items()]
        return f"{type(self).__name__}({', '.join(said)})"

    def _is_default(self, option: Any) -> bool:
        if option.name in _NOT_OURS:
            return True
        default = option.default if option.default_factory is MISSING else option.default_factory()
        return getattr(self, option.name) == default

    def _repr_html_(self) -> str:
        return html_table(self.summary().items(), caption=type(self).__name__)

    def __dir__(self) -> list[str]:
        return completions(self, PreTrainedConfig, _INHERITED, super().__dir__())


_NOT_OURS = {option.name for option in fields(PreTrainedConfig)}  # type: ignore[arg-type]


def _short(name: str, value: Any) -> str:
    if name in _SAID_SHORT:
        return "{…}"
    if name.endswith("_revision") and isinstance(value, str):
        return repr(value if len(value) <= 12 else f"{value[:8]}…")
    return repr(value)


complete_by_dir(SAEConfig)
