"""Which of the concepts of Python source are found from ten lines with them and ten without.

    make train
    python benchmarks/find_by_lines.py runs/tiny [--tokens 40000] [--lines 10] [--output runs/find_by_lines.json]

A line stands with the written one in front of it, as Python source has them. It is positive if a match of the
concept's regular expression touches it, negative if none touches either of the two. Lines are drawn at random from
train files, and `hfsae.contrast` orders the features: once from the lines alone, once with the matches marked. A
feature is then measured as in `feature_names.py`: a threshold chosen on tokens of train files, F1 on tokens of
held-out files. It says the concept if its F1 is at least 0.8 of that of the best one, which `feature_names.py` finds
from the labels of all train tokens. A concept is found if one of the ten features that `hfsae search` lists says it.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from feature_names import _ENOUGH, _best_threshold, best_units, measured, read

from hfsae import SAE, contrast
from hfsae.data import load_text
from hfsae.scores.concepts import PYTHON_CONCEPTS

_FOUND = 0.8
_LISTED = 10
_FILES = 400


def pairs(text: str, pattern: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Every line with the one in front of it, and whether it is `"with"` or `"without"`; neither of some.

    It is given as it is, and with what matches between << and >>.
    """
    spans = [m.span(1 if m.re.groups else 0) for m in re.finditer(pattern, text, re.M)]
    touched = torch.zeros(len(text) + 1, dtype=torch.bool)
    for start, end in spans:
        touched[start:end] = True
    written = [m.span() for m in re.finditer(r"^.*\S.*$", text, re.M)]
    for (start, middle), (_, end) in zip(written, written[1:], strict=False):
        # The line breaks in front of a line belong to it: indentation begins there, and an empty line.
        if touched[middle:end].any():
            parts = runs(text[start:end], touched[start:end].tolist())
            yield "with", (text[start:end], "".join(f"<<{part}>>" if inside else part for inside, part in parts))
        elif not touched[start:end].any():
            yield "without", (text[start:end], text[start:end])


def runs(text: str, inside: list[bool]) -> Iterator[tuple[bool, str]]:
    """The characters of a text in runs that are inside of a match or outside."""
    for key, run in groupby(zip(inside, text, strict=True), key=lambda pair: pair[0]):
        yield key, "".join(character for _, character in run)


def lines(files: list[str], pattern: str, size: int, seed: int) -> tuple[list[tuple[str, str]], ...]:
    """So many lines with the concept, and without, each from another file as far as there are files enough."""
    chosen = random.Random(seed)
    found: dict[str, list[tuple[str, str]]] = {"with": [], "without": []}
    for text in chosen.sample(files, len(files)):
        here: dict[str, list[tuple[str, str]]] = {"with": [], "without": []}
        for kind, passage in pairs(text, pattern):
            here[kind].append(passage)
        for kind, passages in here.items():
            new = sorted(set(passages) - set(found[kind]))
            if new and len(found[kind]) < size:
                found[kind].append(chosen.choice(new))
        if all(len(one) == size for one in found.values()):
            break
    return found["with"], found["without"]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description="Concepts found from a few lines.")
    parser.add_argument("sae", help="folder of an SAE of the embedded language model, such as runs/tiny")
    parser.add_argument("--tokens", type=int, default=40_000, help="of train files, and of held-out files")
    parser.add_argument("--lines", type=int, default=10, help="with the concept, and as many without")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    sae = SAE.from_pretrained(args.sae)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    train, held_out = (read(sae, model, tokenizer, split, args.tokens) for split in ("train", "held_out"))
    best = best_units(train.features, train.labels, sparse=True)
    files = load_text("python-stdlib").shuffle(seed=1)[:_FILES]["text"]
    results = []
    for concept, (name, pattern) in enumerate(PYTHON_CONCEPTS.items()):
        labels = held_out.labels[:, concept]
        if min(int(labels.sum()), int(train.labels[:, concept].sum())) < _ENOUGH:
            continue
        positive, negative = lines(files, pattern, args.lines, args.seed)
        reference = measured(best[concept], held_out.features, labels)["f1"]
        row = {"concept": name, "best": best[concept].index, "best_f1": reference}
        for place, kind in enumerate(("lines", "marked")):
            given = [texts[place] for texts in positive]
            without = [text for text, _ in negative]
            found = contrast(sae, model, tokenizer, given, without, marked=kind == "marked", top=_LISTED)
            f1 = []
            for one in found.features:
                unit = _best_threshold(train.features[:, [one.feature]].float(), train.labels[:, concept], 0, 1)
                f1.append(measured(unit, held_out.features[:, [one.feature]], labels)["f1"])
            places = [rank for rank, value in enumerate(f1, start=1) if value >= _FOUND * reference]
            row[kind] = {
                "found": [one.feature for one in found.features],
                "f1": f1,
                "place": places[0] if places else None,
                "p": found.features[0].p_value,
                "precision": found.precision,
                "recall": found.recall,
            }
        results.append(row)
        print(name, row, flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    print("\n| concept | best feature | F1 | lines: place | feature | F1 | p | marked: place | feature | F1 | p |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in sorted(results, key=lambda row: -row["best_f1"]):
        cells = [cell for kind in ("lines", "marked") for cell in told(row[kind])]
        print(f"| {row['concept']} | {row['best']} | {row['best_f1']:.2f} | {' | '.join(cells)} |")
    for kind in ("lines", "marked"):
        within = {n: sum((row[kind]["place"] or n + 1) <= n for row in results) for n in (1, 5, _LISTED)}
        counts = ", ".join(f"{count} among the first {n}" for n, count in within.items())
        print(f"\n{kind}, {len(results)} concepts: {counts}")


def told(found: dict) -> Iterator[str]:
    """The cells of a table: the first feature that says the concept, or the first of all where none does."""
    row = (found["place"] or 1) - 1
    yield str(found["place"] or "none")
    yield from (str(found["found"][row]), f"{found['f1'][row]:.2f}", f"{found['p']:.3f}")


if __name__ == "__main__":
    main()
