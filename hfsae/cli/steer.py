"""`hfsae steer`: what a feature does to a language model: a continuation with it, or a report over many strengths."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.cli.steering_options import Features, Unit, strengths_of
from hfsae.command_line import option, whole_number

if TYPE_CHECKING:
    from transformers import BatchEncoding

    from hfsae.analysis import FeatureCollection
    from hfsae.saved.kept_features import SavedFeatures

_REPORT = "Report"


def run(
    path: SAESource,
    feature: Features,
    strength: Annotated[
        list[float] | None,
        option(
            "--strength",
            "How strongly; one for all features, or one for each: repeat the option. Of a report, the grid.",
        ),
    ] = None,
    unit: Unit = "maximum",
    text: Annotated[str | None, option("--text", "The text to continue.")] = None,
    new_tokens: Annotated[int, option("--new_tokens", "Tokens of a continuation.")] = 40,
    report: Annotated[
        bool, option("--report", "Measure many strengths and write a page.", rich_help_panel=_REPORT)
    ] = False,
    output: Annotated[
        str | None,
        option("--output", "The page; by default steering-FEATURE.html beside the SAE.", rich_help_panel=_REPORT),
    ] = None,
    tokens_to_measure: Annotated[
        int,
        option(
            "--tokens_to_measure",
            "Tokens of text that was held out.",
            parser=whole_number,
            metavar="<int>",
            rich_help_panel=_REPORT,
        ),
    ] = 10_000,
    prompt_tokens: Annotated[
        int, option("--prompt_tokens", "Tokens of the text that are continued.", rich_help_panel=_REPORT)
    ] = 16,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Prints continuations, or what the report says."""
    from hfsae.analysis.weights import chosen_features
    from hfsae.folders import can_be_file
    from hfsae.hooks.limits import refuse_too_long
    from hfsae.in_model import hook_points_of
    from hfsae.saved.kept_features import SavedFeatures

    if report == (text is not None):
        raise ValueError('say what to do: --text "..." to continue a text, or --report to measure many strengths.')
    if output is not None and not report:
        raise ValueError("--output is the page of --report: a continuation is printed.")
    if new_tokens < 1:
        raise ValueError(f"--new_tokens {new_tokens}: expected 1 or more.")
    if report and len(feature) != 1:
        raise ValueError("a report is of one feature: call it once for each.")
    strengths = {} if report else strengths_of(feature, strength or [1.0])
    opened = SavedFeatures(path, **collecting.keywords(), **on_hub.keywords())
    page = Path(output) if output else (opened.folder or Path()) / f"steering-{feature[0]}.html"
    # What follows is said before features are collected, which takes long.
    if report:
        can_be_file(page)
    chosen_features(opened.sae, feature)
    hook_points_of(opened.sae.config, opened.model)
    if text is not None:
        inputs = opened.sae.tokenize(text, opened.tokenizer)
        refuse_too_long(inputs["input_ids"].shape[1], opened.model, new_tokens)
    maxima = opened.collection if unit == "maximum" else None
    if text is not None:
        return _continue(opened, strengths, maxima, inputs, new_tokens)
    told = {"max_tokens": tokens_to_measure, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    return _report(opened, feature[0], page, strengths=strength, maxima=maxima, **told)


def _continue(
    opened: "SavedFeatures",
    strengths: dict[int, float],
    maxima: "FeatureCollection | None",
    inputs: "BatchEncoding",
    new_tokens: int,
) -> int:
    from hfsae.analysis import steer

    model: Any = opened.model
    tokenizer, inputs = opened.tokenizer, inputs.to(opened.model.device)
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    plain = model.generate(**inputs, **options)
    with steer(model, opened.sae, strengths, maxima=maxima, tokenizer=tokenizer):
        steered = model.generate(**inputs, **options)
    for title, ids in (("without steering", plain), ("steered", steered)):
        print(f"{title}:\n{tokenizer.decode(ids[0])}\n")
    return 0


def _report(
    opened: "SavedFeatures", feature: int, page: Path, *, strengths: list[float] | None, **options: Any
) -> int:
    from hfsae.steering import STRENGTHS, steering_report, usable_words, write_steering_page

    source = opened.text
    found = steering_report(
        opened.model,
        opened.sae,
        feature,
        source.documents(),
        tokenizer=opened.tokenizer,
        strengths=strengths or STRENGTHS,
        **options,
    )
    print(f"{'strength':>9}{'its tokens':>12}{'perplexity':>12}{'repeated':>10}")
    for one in found.effects:
        mark = " usable" if found.is_usable(one) else ""
        print(f"{one.strength:9.4g}{one.token_probability:12.4g}{one.perplexity:12.4g}{one.repetition:10.3f}{mark}")
    print(usable_words(found))
    write_steering_page(found, page, tokenizer=opened.tokenizer, title=str(opened.source), text=str(source))
    print(f"wrote {page}")
    return 0
