"""What `hfsae score` prints: figures with their intervals, and an order of architectures where it counts."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from hfsae.scores.absorption import Absorption
from hfsae.scores.labelled_rows import COORDINATES, FEATURES, NEURONS
from hfsae.scores.matching import Matching
from hfsae.scores.noise import ConfidenceInterval, ReseedNoise, ranking
from hfsae.scores.probing import KS, LINEAR, Probing
from hfsae.scores.reseeds import Reseeds
from hfsae.scores.score import SAEScores

_WIDTH = 24


def score_lines(name: str, scores: SAEScores) -> Iterator[str]:
    """The scores of one SAE.

    Args:
        name: What it is called.
        scores: Its scores.
    """
    yield f"{name}; intervals of 95 %, by a bootstrap over documents, which say nothing of another seed"
    if scores.tokens is not None:
        yield from _probing_lines(f"tokens of {scores.text}", scores.tokens)
        yield from _concept_lines(scores.tokens)
    for title, one in scores.documents.items():
        yield from _probing_lines(f"documents, {title}", one)
    for title, found in (("concepts", scores.absorption), ("first letters", scores.letters)):
        if found is not None:
            yield from _absorption_lines(title, found)
    for title, found in scores.of_documents.items():
        yield from _absorption_lines(f"documents, {title}", found, "documents")
    for why in scores.refused:
        yield f"not scored: {why}"


def headline(scores: SAEScores) -> dict[str, ConfidenceInterval]:
    """The one figure of each score by which SAEs are compared."""
    found: dict[str, ConfidenceInterval] = {}
    if scores.tokens is not None:
        found["probing of tokens, F1 at k = 1"] = scores.tokens.mean_f1(FEATURES, 1)
    for title, one in scores.documents.items():
        found[f"probing of documents ({title}), F1 at k = 1"] = one.mean_f1(FEATURES, 1)
    for title, absorbed in (("concepts", scores.absorption), ("first letters", scores.letters)):
        if absorbed is not None and absorbed.mean is not None:
            found[f"absorption of {title}"] = absorbed.mean
    for title, absorbed in scores.of_documents.items():
        if absorbed.mean is not None:
            found[f"absorption of documents ({title})"] = absorbed.mean
    return found


def comparison_lines(scores: Mapping[str, SAEScores], groups: Sequence[Reseeds]) -> Iterator[str]:
    """Each score of several SAEs side by side with the noise of seeds, and an order only where seeds differ less.

    Args:
        scores: By the name of the SAE.
        groups: Which of them differ in their seed alone.
    """
    figures = {name: headline(one) for name, one in scores.items()}
    for group in groups:
        for name, why in group.not_counted.items():
            yield f"{name} does not count as another seed: {why}"
    for title in next(iter(figures.values())):
        if not all(title in one for one in figures.values()):
            continue
        yield title
        for name, one in figures.items():
            yield f"  {name}: {one[title]}"
        of_groups = {group.name: [figures[name][title].value for name in group.runs] for group in groups}
        yield from noise_lines(of_groups, higher_is_better=not title.startswith("absorption"))


def noise_lines(groups: Mapping[str, Sequence[float]], *, what: str = "seeds", **options: bool) -> Iterator[str]:
    """Of each recipe mean and noise, and an order of several where it counts.

    Args:
        groups: By recipe the scores of its runs.
        what: What the scores of a recipe are of.
        **options: For `ranking`.
    """
    for name, runs in groups.items():
        if (noise := ReseedNoise.of(runs)) is not None:
            yield f"  {name}: {noise.mean:.3f} ± {noise.deviation:.3f} over {noise.n} {what} (standard deviation)"
    if len(groups) > 1:
        yield f"  {ranking(groups, **options)}"


def stability_lines(matched: Mapping[tuple[str, str], Matching], groups: Sequence[Reseeds]) -> Iterator[str]:
    """How many features come again in other runs, and by how much that differs from pair to pair.

    Args:
        matched: Every two SAEs of one architecture and shape.
        groups: Which SAEs differ in their seed alone.
    """
    for (name, other), found in matched.items():
        told = f"does not count: {found.objection}" if found.objection is not None else str(found.stability)
        yield f"stability of {name} and {other}: {told}"
    of_groups = {
        group.name: [one.stability.value for pair, one in matched.items() if set(pair) <= set(group.runs)]
        for group in groups
    }
    yield from noise_lines({name: found for name, found in of_groups.items() if found}, what="pairs of seeds")


def _probing_lines(title: str, found: Probing) -> Iterator[str]:
    yield ""
    yield (
        f"{title}: {len(found.concepts)} concepts, probes chosen on {found.n_train:,}, measured on "
        f"{found.n_held_out:,}"
    )
    if found.left_out:
        yield f"  too rare, left out: {', '.join(found.left_out)}"
    bases = list(dict.fromkeys(basis for basis, _ in found.probes if basis != LINEAR))
    for measure, mean in (("F1", found.mean_f1), ("accuracy", found.mean_accuracy)):
        yield f"  mean {measure:<{_WIDTH - 5}}" + "".join(f"{f'k = {k}':<{_WIDTH}}" for k in KS).rstrip()
        for basis in bases:
            yield f"  {basis:<{_WIDTH}}" + "".join(f"{mean(basis, k)!s:<{_WIDTH}}" for k in KS).rstrip()
        for basis, k in found.probes:
            if basis == LINEAR:
                yield f"  {f'{LINEAR}, all {k}':<{_WIDTH}}{mean(basis, k)}"
    share = float(found.share.mean())
    yield f"  always to say no has an accuracy of {1 - share:.3f}"
    for basis in (NEURONS, COORDINATES):
        if (basis, 1) in found.probes:
            above = found.above((FEATURES, 1), (basis, 1))
            yield (
                f"  the best feature is above the best of {basis} on {above.value:.0f} of {len(found.concepts)} "
                f"({above.low:.0f} to {above.high:.0f})"
            )


def _concept_lines(found: Probing) -> Iterator[str]:
    columns: list[tuple[str, Callable[[int], str]]] = [
        ("share", lambda row: f"{found.share[row]:.2%}"),
        ("feature", lambda row: str(found.units((FEATURES, 1), row)[0])),
        ("F1 at k = 1", lambda row: str(of_features[row])),
    ]
    of_features = found.f1(FEATURES, 1)
    if (NEURONS, 1) in found.probes:
        of_neurons = found.f1(NEURONS, 1)
        columns.append(("of the best neuron", lambda row: str(of_neurons[row])))
    widths = [9, 9, _WIDTH, _WIDTH]
    yield f"  {'concept':<{_WIDTH}}" + _row([title for title, _ in columns], widths)
    for row in sorted(range(len(found.concepts)), key=lambda row: -of_features[row].value):
        yield f"  {found.concepts[row]:<{_WIDTH}}" + _row([cell(row) for _, cell in columns], widths)


def _absorption_lines(title: str, found: Absorption, of_what: str = "tokens") -> Iterator[str]:
    yield ""
    if found.mean is None:
        yield f"absorption of {title}: not told"
    else:
        yield f"absorption of {title}: {found.mean} of the {of_what}, over {len(found.concepts)} of them"
    for one in sorted(found.concepts, key=lambda one: -one.absorbed.value):
        by = ", ".join(f"{feature} on {times}" for feature, times in one.absorbing[:3])
        yield (
            f"  {one.concept:<{_WIDTH}}{one.absorbed}, silent {one.silent.value:.3f} of {one.tokens:,}; main "
            f"{', '.join(map(str, one.main))}" + (f"; absorbed by {by}" if by else "")
        )
    for concept, why in found.not_told.items():
        yield f"  {concept:<{_WIDTH}}not told: {why}"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()
