"""`hfsae steer-model`: a language model with features turned up or down in its own weights."""

from pathlib import Path
from typing import Annotated, Any, Literal

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.cli.steering_options import Features, Strengths, Unit, strengths_of
from hfsae.command_line import option, whole_number


def run(
    path: SAESource,
    feature: Features,
    strength: Strengths,
    output: Annotated[str, option("--output", "A folder that is not there yet.")],
    unit: Unit = "maximum",
    form: Annotated[
        Literal["auto", "model", "adapter"],
        option("--form", "All weights, or a PEFT adapter; auto: an adapter where the model has no bias at the place."),
    ] = "auto",
    measure: Annotated[
        bool, option("--measure/--no_measure", "Measure for the card what the steering does to a text.")
    ] = True,
    tokens_to_measure: Annotated[
        int,
        option("--tokens_to_measure", "Tokens of that text.", parser=whole_number, metavar="<int>"),
    ] = 20_000,
    license: Annotated[str | None, option("--license", "Licence for the card, such as apache-2.0.")] = None,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Writes the folder, and says what was changed and what that does."""
    from hfsae.saved.kept_features import SavedFeatures
    from hfsae.steering import steer_model
    from hfsae.steering.steered_model import found_place, refuse_before_loading

    strengths = strengths_of(feature, strength)
    opened = SavedFeatures(path, **collecting.keywords(), **on_hub.keywords())
    refuse_before_loading(opened.sae, list(strengths), Path(output), form)
    text = opened.text if measure else None
    found_place(opened.model, opened.sae, list(strengths), Path(output), form)  # before features are collected
    written = steer_model(
        opened.model,
        opened.sae,
        strengths,
        output,
        tokenizer=opened.tokenizer,
        maxima=opened.collection if unit == "maximum" else None,
        form=form,
        data=None if text is None else text.documents(),
        data_name=None if text is None else _named(text),
        max_tokens=tokens_to_measure,
        labels=opened.labels,
        sae_name=path,
        license=license,
    )
    record = written.record
    print(f"wrote {output}: {'a PEFT adapter' if written.form == 'adapter' else 'a model'}")
    print(f"a vector of length {record['vector_norm']:.4g} was added to {record['tensor']}")
    if effect := record["effect"]:
        print(
            f"on {effect['n_predictions']:,} predictions: perplexity {effect['perplexity']:.4g} to "
            f"{effect['steered_perplexity'] or float('inf'):.4g}, KL divergence {effect['kl']:.4g} nats a token, "
            f"{effect['top_changed']:.1%} have another most likely token"
        )
        for said in ("raised", "lowered"):
            print(f"{said:8}", " ".join(repr(token["text"]) for token in effect[said][:8]))
    return 0


def _named(text: Any) -> str:
    """What a card calls a text: without the folders of this machine."""
    from dataclasses import replace

    from hfsae.hub.hub_ids import without_folders

    return str(replace(text, dataset=None if text.dataset is None else without_folders(text.dataset)))
