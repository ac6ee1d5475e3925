"""`hfsae features`: which features of an SAE fire on a text, its tokens shaded by how strongly."""

import argparse
import sys

from hfsae.cli.measuring import add_hub_options, hub_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, the text and what is shown of it."""
    parser.add_argument("path", help="folder or Hub repository of the SAE")
    parser.add_argument("--text", required=True, help="the text; - reads it from standard input")
    add_hub_options(parser)
    parser.add_argument("--model", help="language model to read the text with; by default the one the config names")
    parser.add_argument(
        "--features", type=int, nargs="+", metavar="I", help="these features, instead of the strongest"
    )
    parser.add_argument("--top", type=int, default=5, help="how many of the strongest (default: %(default)s)")
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="shade with colours; without them a token is shown as [token|value] (default: where it is a terminal)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the text once for each feature."""
    from hfsae.analysis.shading import shaded_features
    from hfsae.language_model import rename_base_model
    from hfsae.modeling import SAE

    sae = SAE.from_pretrained(args.path, **hub_options(args))
    if args.model is not None:
        rename_base_model(sae.config, args.model)
    text = sys.stdin.read() if args.text == "-" else args.text
    color = sys.stdout.isatty() if args.color == "auto" else args.color == "always"
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    for line in shaded_features(sae, model, tokenizer, text, features=args.features, top=args.top, color=color):
        print(line)
    return 0
