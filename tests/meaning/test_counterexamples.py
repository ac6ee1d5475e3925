import random

from hfsae.meaning.counterexamples import Counterexamples
from tests.analysis.tiny import read_longhand, setting, texts

WIDTH = 6


def longhand() -> dict[tuple[int, ...], set[int]]:
    """The features that fire somewhere in each window, token by token; of equal windows those of either."""
    given, found = setting(), {}
    for token in read_longhand(texts(60), given):
        start = token.column - token.column % WIDTH
        window = tuple(token.piece[start : start + WIDTH])
        found.setdefault(window, set()).update((token.features > 0).nonzero().flatten().tolist())
    return found


def test_a_feature_fires_in_none_of_its_counterexamples_and_a_neighbour_does_in_those_of_neighbours():
    given, fires = setting(), longhand()
    read = Counterexamples.read(*given, texts(60), width=WIDTH, max_tokens=10_000, disable_tqdm=True)
    assert len(read.windows) > 50 and {len(window) for window in read.windows} == {3, 4, 5, 6}
    checked = 0
    for feature in range(0, 40, 5):
        near = [(feature + 1) % 40, (feature + 2) % 40]
        anywhere = read.anywhere(feature, 20, random.Random(0))
        beside = read.beside_neighbours(feature, near, 20, random.Random(0))
        # Windows whose tokens stand at several places of the text may fire at one of them.
        alone = [window for window in [*anywhere, *beside] if read.windows.count(window) == 1]
        assert all(feature not in fires.get(tuple(window), set()) for window in alone)
        assert all(fires[tuple(window)] & set(near) for window in beside)
        checked += len(alone)
        in_all = [i for i in range(len(read.windows)) if i not in read.firing_in(feature)]
        assert len(read.anywhere(feature, 10_000, random.Random(0))) == len(in_all)
    assert checked > 50


def test_it_reads_no_more_than_asked():
    read = Counterexamples.read(*setting(), texts(60), width=WIDTH, max_tokens=20, batch_size=2, disable_tqdm=True)
    assert 0 < len(read.windows) < 20
