"""`hfsae features`: which features of an SAE fire on a text, its tokens shaded by how strongly."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from hfsae.cli.measuring_options import OnHub, SAESource
from hfsae.command_line import NUMBERS, option


def run(
    path: SAESource,
    text: Annotated[str, option("--text", "The text; - reads it from standard input.")],
    model_name_or_path: Annotated[
        str | None,
        option(
            "--model_name_or_path",
            "Language model to read the text with; by default the one that the config names. --model for short.",
        ),
    ] = None,
    features: Annotated[
        list[int] | None, option("--features", "These features, instead of the strongest.", metavar=NUMBERS)
    ] = None,
    top: Annotated[int, option("--top", "How many of the strongest.")] = 5,
    color: Annotated[
        Literal["auto", "always", "never"],
        option("--color", "Shade with colours, or show a token with its value in brackets; auto: in a terminal."),
    ] = "auto",
    *,
    on_hub: OnHub,
) -> int:
    """Prints the text once for each feature."""
    from hfsae.analysis.shading import shaded_features
    from hfsae.identity import Identity
    from hfsae.label_file import labels_beside
    from hfsae.language_model import rename_base_model
    from hfsae.modeling import SAE

    sae = SAE.from_pretrained(path, **on_hub.keywords())
    if model_name_or_path is not None:
        rename_base_model(sae.config, model_name_or_path)
    words = sys.stdin.read() if text == "-" else text
    shaded = sys.stdout.isatty() if color == "auto" else color == "always"
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    records = labels_beside(Path(path) / on_hub.subfolder, *Identity.of(sae))
    labels = {feature: label.text for feature, label in records.items()}
    options = {"features": features or None, "top": top, "color": shaded, "labels": labels}
    for line in shaded_features(sae, model, tokenizer, words, **options):
        print(line)
    return 0
