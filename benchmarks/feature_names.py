"""Which features of the tiny SAE stand for what: named by regular expressions, measured on held-out files.

    make train
    python benchmarks/feature_names.py runs/tiny [--tokens 60000] [--output runs/feature_names.json]

A concept is a regular expression over Python source; a token is positive if its last character lies in a match (in its
first group, where it has one). On train files the feature and the threshold of the best F1 are chosen, on held-out
files precision and recall are measured. In the same way the best single neuron (MLP activations of the blocks up to
the SAE's, either sign), the best coordinate of the residual stream, and the best direction of it when the labels may
be used to find it: the difference of the class means.

Then the features are changed. Expected tokens are the ten that follow the concept most beyond their usual share, on
train files. At held-out tokens outside of the concept the feature is added (its largest activation, at the last
position), beside it four features drawn at random, each by its own largest; inside of the concept it is ablated (at
all positions). Measured is the probability of the expected tokens.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hfsae import SAE, ablate, capture, steer
from hfsae.analysis import TokenTexts
from hfsae.analysis.document_sequences import DocumentSequenceReader
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.data import load_text
from hfsae.scores.concepts import PYTHON_CONCEPTS, PatternLabels

_TRIED, _ENOUGH = 20, 30
_CONTEXT, _PROMPTS, _EXPECTED, _CONTROLS = 24, 100, 10, 4


@dataclass
class Text:
    """N tokens of some files, and what every unit does on them.

    Attributes:
        labels: bool (N, concepts).
        ids: int64 (N,), the tokens; `following` the next ones, −1 at the end of a piece.
        prompts: For each token the row of `pieces` and its column.
        pieces: The pieces' token ids.
        features: Dense (N, n_features), float16; `neurons` and `residual` float32.
    """

    labels: Tensor
    following: Tensor
    places: list[tuple[int, int]]
    pieces: list[list[int]]
    features: Tensor
    neurons: Tensor
    residual: Tensor


@torch.no_grad()
def read(sae: SAE, model, tokenizer, split: str, tokens: int) -> Text:
    """Reads files of one split in a random order, so that many modules are among them."""
    dataset = load_text("python-stdlib", split=split).shuffle(seed=0)
    layer = int(sae.config.hook_point.split(".")[2])
    names = [sae.config.hook_point, *(f"mlp_act.{i}" for i in range(layer + 1))]
    reader, cutter = FeatureReader(sae, model), DocumentSequenceReader(sae.config, model, tokenizer)
    known: dict[int, Tensor] = {}
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("labels", "following", "features", "neurons", "residual")
    }
    places, pieces, n = [], [], 0
    for batch in cutter.batches(dataset):
        ids, mask, keep = batch.tokens
        firings = reader.read(batch.tokens)
        dense = torch.zeros(ids.numel(), sae.config.n_features, dtype=torch.float16)
        dense[firings.tokens, firings.features] = firings.values.half()
        with capture(model, names) as activations:
            activations.run(input_ids=ids, attention_mask=mask)
        kept = keep.flatten()
        columns["features"].append(dense[kept])
        columns["residual"].append(activations[names[0]].flatten(0, 1)[kept])
        columns["neurons"].append(torch.cat([activations[name].flatten(0, 1) for name in names[1:]], 1)[kept])
        next_ids = torch.where(mask[:, 1:].bool(), ids[:, 1:], -1)
        columns["following"].append(torch.nn.functional.pad(next_ids, (0, 1), value=-1).flatten()[kept])
        for row, (document, start) in enumerate(zip(batch.documents.tolist(), batch.starts.tolist(), strict=True)):
            if document not in known:
                known[document] = token_labels(tokenizer, dataset[document]["text"])
            here = keep[row].nonzero().squeeze(1)
            columns["labels"].append(known[document][start + here])
            places += [(len(pieces), column) for column in here.tolist()]
            pieces.append(ids[row, : int(mask[row].sum())].tolist())
        n += int(kept.sum())
        if n >= tokens:
            break
    return Text(places=places, pieces=pieces, **{name: torch.cat(parts) for name, parts in columns.items()})


def token_labels(tokenizer, text: str) -> Tensor:
    """bool (tokens, concepts)."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    return torch.from_numpy(PatternLabels(PYTHON_CONCEPTS)(TokenTexts(tokenizer)(ids)))


@dataclass
class Unit:
    """One unit with a threshold above which it says yes."""

    index: int
    sign: int
    threshold: float
    f1: float


def best_units(values: Tensor, labels: Tensor, *, sparse: bool = False) -> list[Unit]:
    """For each concept the unit and threshold of the best F1 over all thresholds.

    Thresholds are tried on the units whose means inside and outside of the concept differ most, in standard
    deviations; a threshold lets half of the tokens pass at most.

    Args:
        values: (N, units).
        labels: bool (N, concepts).
        sparse: Whether a unit says yes by large values alone, and 0 is none.
    """
    values = values.float()
    shares = labels.float() / labels.sum(0).clamp(min=1)
    others = (~labels).float() / (~labels).sum(0)
    distance = (shares - others).T @ values / values.std(0).clamp(min=1e-6)  # (concepts, units)
    best = []
    for concept, distances in enumerate(distance):
        tried = (distances if sparse else distances.abs()).topk(min(_TRIED, values.shape[1])).indices.tolist()
        found = [_best_threshold(values, labels[:, concept], unit, 1 if distances[unit] > 0 else -1) for unit in tried]
        best.append(max(found, key=lambda unit: unit.f1))
    return best


def _best_threshold(values: Tensor, labels: Tensor, index: int, sign: int) -> Unit:
    strongest = (sign * values[:, index]).topk(len(values) // 2)
    hits = labels[strongest.indices].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + labels.sum())
    f1[strongest.values == 0] = 0  # what does not fire says nothing
    place = int(f1.argmax())
    return Unit(index, sign, float(strongest.values[place]), float(f1[place]))


def scores(says: Tensor, labels: Tensor) -> dict[str, float]:
    """Precision, recall and F1 of yes and no answers."""
    hits = float((says & labels).sum())
    precision, recall = hits / max(float(says.sum()), 1), hits / max(float(labels.sum()), 1)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / max(float(says.sum() + labels.sum()), 1)}


def measured(unit: Unit, values: Tensor, labels: Tensor) -> dict[str, float]:
    """A unit's scores on other text."""
    return scores(unit.sign * values[:, unit.index].float() >= unit.threshold, labels)


def mean_differences(train: Text) -> Tensor:
    """(d, concepts): for each concept the direction from the mean of all others to its own."""
    return torch.stack(
        [train.residual[yes].mean(0) - train.residual[~yes].mean(0) for yes in train.labels.T.unbind(0)], 1
    )


def expected_tokens(train: Text, concept: int) -> Tensor:
    """The tokens that follow a concept most beyond their usual share."""
    yes = train.labels[:, concept] & (train.following >= 0)
    size = int(train.following.max()) + 1
    share = torch.bincount(train.following[yes], minlength=size) / max(int(yes.sum()), 1)
    usual = torch.bincount(train.following[train.following >= 0], minlength=size) / int((train.following >= 0).sum())
    return (share - usual).topk(_EXPECTED).indices


def prompts(text: Text, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Left-padded contexts that end with some of the chosen tokens."""
    rows = chosen.nonzero().squeeze(1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:_PROMPTS]].tolist()
    contexts = [
        text.pieces[piece][max(0, column + 1 - _CONTEXT) : column + 1]
        for piece, column in map(text.places.__getitem__, rows)
    ]
    length = max(map(len, contexts))
    ids = torch.tensor([[0] * (length - len(context)) + context for context in contexts])
    mask = torch.tensor([[0] * (length - len(context)) + [1] * len(context) for context in contexts])
    return ids, mask


@torch.no_grad()
def probability(model, ids: Tensor, mask: Tensor, expected: Tensor) -> float:
    """The mean probability that one of the expected tokens comes next."""
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False).logits[:, -1]
    return float(logits.softmax(-1)[:, expected].sum(-1).mean())


def changed(sae: SAE, model, tokenizer, train: Text, held_out: Text, concept: int, feature: int) -> dict[str, float]:
    """The probability of the expected tokens with the feature added, with others added, and ablated."""
    generator = torch.Generator().manual_seed(concept)
    expected = expected_tokens(train, concept)
    maxima = train.features.amax(0).float()
    living = (maxima > 0).nonzero().squeeze(1)
    others = living[torch.randperm(len(living), generator=generator)[:_CONTROLS]].tolist()
    outside, inside = (
        prompts(held_out, yes, generator) for yes in (~held_out.labels[:, concept], held_out.labels[:, concept])
    )

    def added(index: int) -> float:
        with steer(model, sae, {index: float(maxima[index])}, positions="last", tokenizer=tokenizer):
            return probability(model, *outside, expected)

    with ablate(model, sae, [feature], tokenizer=tokenizer):
        without = probability(model, *inside, expected)
    return {
        "outside": probability(model, *outside, expected),
        "outside_steered": added(feature),
        "outside_others_steered": sum(map(added, others)) / len(others),
        "inside": probability(model, *inside, expected),
        "inside_ablated": without,
    }


def main() -> None:
    """Measures and prints two tables."""
    parser = argparse.ArgumentParser(description="What features of the tiny SAE stand for.")
    parser.add_argument("sae", help="folder of an SAE of the embedded language model, such as runs/tiny")
    parser.add_argument("--tokens", type=int, default=60_000, help="of train files, and of held-out files")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    sae = SAE.from_pretrained(args.sae)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    train, held_out = (read(sae, model, tokenizer, split, args.tokens) for split in ("train", "held_out"))
    directions = mean_differences(train)
    found = {
        "feature": (best_units(train.features, train.labels, sparse=True), held_out.features),
        "neuron": (best_units(train.neurons, train.labels), held_out.neurons),
        "coordinate": (best_units(train.residual, train.labels), held_out.residual),
    }
    results = []
    for concept, (name, pattern) in enumerate(PYTHON_CONCEPTS.items()):
        labels = held_out.labels[:, concept]
        if min(labels.sum(), train.labels[:, concept].sum()) < _ENOUGH:
            print(f"{name}: fewer than {_ENOUGH} tokens, left out")
            continue
        row: dict = {"concept": name, "pattern": pattern, "share": float(labels.double().mean())}
        for kind, (units, values) in found.items():
            row[kind] = measured(units[concept], values, labels) | {"index": units[concept].index}
        along, held_along = train.residual @ directions[:, [concept]], held_out.residual @ directions[:, [concept]]
        (probe,) = best_units(along, train.labels[:, [concept]])
        row["mean_difference"] = measured(probe, held_along, labels)
        row["changed"] = changed(sae, model, tokenizer, train, held_out, concept, row["feature"]["index"])
        row["changed"]["expected"] = TokenTexts(tokenizer)(expected_tokens(train, concept).tolist())
        results.append(row)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")
    print("| concept | share | feature | precision | recall | F1 | best neuron | best coordinate | mean difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in sorted(results, key=lambda row: -row["feature"]["f1"]):
        feature, others = row["feature"], (row[kind]["f1"] for kind in ("neuron", "coordinate", "mean_difference"))
        print(
            f"| {row['concept']} | {row['share']:.2%} | {feature['index']} | {feature['precision']:.2f} "
            f"| {feature['recall']:.2f} | {feature['f1']:.2f} | {' | '.join(f'{f1:.2f}' for f1 in others)} |"
        )
    print("\n| concept | feature | outside | added | others added | inside | ablated |\n|---|---|---|---|---|---|---|")
    for row in sorted(results, key=lambda row: -row["feature"]["f1"]):
        shown = [
            row["changed"][name]
            for name in ("outside", "outside_steered", "outside_others_steered", "inside", "inside_ablated")
        ]
        print(f"| {row['concept']} | {row['feature']['index']} | {' | '.join(f'{p:.3f}' for p in shown)} |")


if __name__ == "__main__":
    main()
