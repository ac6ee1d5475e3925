"""`hfsae label`: a language model says what features respond to, and is held to what it says."""

from typing import Annotated

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.command_line import NUMBERS, option

_ASKED = "The model that is asked"
_SCORING = "Examples and scores"


def run(
    path: SAESource,
    model: Annotated[
        str,
        option(
            "--model",
            "A chat model: Hub id, folder, or with --endpoint the name by which the server knows it.",
            rich_help_panel=_ASKED,
        ),
    ],
    endpoint: Annotated[
        str | None,
        option(
            "--endpoint",
            "Address of a server of OpenAI's protocol, such as http://127.0.0.1:8000/v1. Its key is taken from "
            "HFSAE_API_KEY or OPENAI_API_KEY.",
            rich_help_panel=_ASKED,
        ),
    ] = None,
    at_once: Annotated[int, option("--at_once", "Requests, or conversations, at once.", rich_help_panel=_ASKED)] = 8,
    retries: Annotated[
        int, option("--retries", "How often a request to a server is sent again.", rich_help_panel=_ASKED)
    ] = 6,
    timeout: Annotated[
        float, option("--timeout", "Seconds that a server may be silent.", rich_help_panel=_ASKED)
    ] = 120.0,
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            "What a model that runs here computes in, as bfloat16; by default what it is saved in.",
            rich_help_panel=_ASKED,
        ),
    ] = None,
    model_kwargs: Annotated[
        str | None,
        option(
            "--model_kwargs",
            'For from_pretrained of a model that runs here, as {"quantization_config": {"load_in_8bit": true}}.',
            rich_help_panel=_ASKED,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        option(
            "--prompts",
            "Folder with templates in place of the package's: explain.jinja, detection.jinja, fuzzing.jinja, "
            "simulation.jinja.",
            rich_help_panel=_ASKED,
        ),
    ] = None,
    estimate: Annotated[bool, option("--estimate", "Say what it will cost, and ask nothing.")] = False,
    features: Annotated[
        list[int] | None, option("--features", "These features; by default all that fire.", metavar=NUMBERS)
    ] = None,
    max_features: Annotated[int | None, option("--max_features", "So many at most, drawn at random.")] = None,
    output: Annotated[str | None, option("--output", "The file; by default labels.json beside the weights.")] = None,
    write: Annotated[bool, option("--write", "Write labels that are there again, also those of people.")] = False,
    n_shown: Annotated[
        int, option("--n_shown", "Examples that a feature is explained from.", rich_help_panel=_SCORING)
    ] = 20,
    n_scored: Annotated[
        int,
        option(
            "--n_scored",
            "Pieces of each kind that a label is scored on; 0: no scores.",
            rich_help_panel=_SCORING,
        ),
    ] = 15,
    shown_at_once: Annotated[
        int, option("--shown_at_once", "Pieces in one request for verdicts.", rich_help_panel=_SCORING)
    ] = 5,
    n_simulated: Annotated[
        int,
        option(
            "--n_simulated",
            "Pieces of each of two kinds whose activations the model foretells token by token, 2 or more; 0: none.",
            rich_help_panel=_SCORING,
        ),
    ] = 0,
    seed: Annotated[int, option("--seed", "Of what is drawn.", rich_help_panel=_SCORING)] = 0,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Explains, scores, and writes labels.json."""
    import json

    from hfsae.label_file import GUESS
    from hfsae.meaning import EndpointChat, LocalChat, Prompts
    from hfsae.meaning.label_saved import label_saved
    from hfsae.saved.kept_features import SavedFeatures

    templates = Prompts.load(prompts)
    kwargs = json.loads(model_kwargs) if model_kwargs else {}
    if endpoint is None:
        chat = LocalChat(model, batch_size=at_once, dtype=dtype, model_kwargs=kwargs)
    elif kwargs or dtype:
        raise ValueError("--model_kwargs and --dtype are for a model that runs here, and --endpoint names a server.")
    else:
        chat = EndpointChat(endpoint, model, at_once=at_once, retries=retries, timeout=timeout)
    opened = SavedFeatures(path, **collecting.keywords(), **on_hub.keywords())
    done = label_saved(
        opened,
        chat,
        features=features or None,
        max_features=max_features,
        output=output,
        write=write,
        tell=print,
        cost_alone=estimate,
        seed=seed,
        n_shown=n_shown,
        n_scored=n_scored,
        shown_at_once=shown_at_once,
        n_simulated=n_simulated,
        prompts=templates,
    )
    if estimate:
        return 0
    for name, (mean, low, high) in done.mean_scores().items():
        print(f"{name}: {mean:.3f} on average ({low:.3f} to {high:.3f}); {GUESS[name]:g} is a guess")
    if done.unsimulated:
        print(
            f"{len(done.unsimulated):,} labels without a simulation score: fewer than two pieces of a kind "
            "were there, or were answered"
        )
    print(
        f"{len(done.labels):,} labels, {len(done.nonsense):,} without an explanation, {len(done.too_few):,} with too "
        f"few examples, {done.unanswered:,} pieces without a verdict, {done.answers:,} answers"
    )
    return 0
