"""`hfsae report`: the page with curves, figures and features of a saved SAE, written again."""

from dataclasses import dataclass
from typing import Annotated

from hfsae.cli.measuring_options import Folder, ModelAndText, folders_of, tokens


@dataclass(frozen=True)
class Examples(ModelAndText):
    """The language model and the text that examples of features are from."""

    max_tokens: Annotated[int, tokens("Tokens to look for examples in.")] = 20_000


def run(path: Folder, examples: Examples) -> int:
    """Looks for examples of features and writes the page."""
    from hfsae.saved.saved_report import write_saved_report

    for folder in folders_of(path):
        print(f"wrote {write_saved_report(folder, **examples.keywords())}")
    return 0
