"""Loads a trained SAE from its folder alone, splices it into its language model, and measures what its card claims.

    python examples/evaluate.py runs/tiny

Ends with an error if the loss recovered differs from the card's by more than 1e-4.
"""

import argparse
import sys

from hfsae import SAE
from hfsae.saved.measuring_again import evaluate_saved

TOLERANCE = 1e-4


def main(command_line: list[str] | None = None) -> None:
    """Measures the SAE of the folder given and compares."""
    parser = argparse.ArgumentParser(description="Measures a saved SAE and compares with its card.")
    parser.add_argument("folder", help="what training saved")
    folder = parser.parse_args(command_line).folder
    sae = SAE.from_pretrained(folder)
    if sae.config.metrics is None:
        sys.exit(f"{folder} was not evaluated: its card has no number to compare with. Run `hfsae eval {folder}`.")
    claimed = sae.config.metrics["loss_recovered"]
    measured = evaluate_saved(folder, write=False)["loss_recovered"]
    print(f"loss recovered: {measured:.4f}")
    if abs(measured - claimed) > TOLERANCE:
        sys.exit(f"the card says {claimed:.4f}: the SAE, the model or the text is not the one that was measured.")


if __name__ == "__main__":
    main()
