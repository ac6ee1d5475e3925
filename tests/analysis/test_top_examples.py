import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.analysis.top_examples import TopExamples

SIZE = 3
ENTRY = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)).map(
    lambda entry: (*entry, (entry[2] + 2 * entry[3]) % 5)
)
"""Feature, score, document, position, context: few of each, so that scores tie and contexts come again."""


def offered(entries, leaders=None) -> TopExamples:
    leaders = leaders or TopExamples(3, SIZE, {"payload": torch.tensor([[-1, -1]])})
    if entries:
        features, scores, documents, positions, contexts = (
            torch.tensor(column) for column in zip(*entries, strict=True)
        )
        entering = leaders.may_enter(features, scores.double()).nonzero().squeeze(1)
        columns = {"score": scores.double(), "document": documents, "position": positions, "context": contexts}
        columns["payload"] = torch.stack([documents, positions], 1)
        leaders.offer(features[entering], {name: column[entering] for name, column in columns.items()})
    return leaders


def kept(leaders: TopExamples) -> list[list[tuple]]:
    names = ("score", "document", "position", "context")
    rows = zip(*(leaders.fields[name].tolist() for name in names), strict=True)
    return [[entry for entry in zip(*row, strict=True) if entry[1] >= 0] for row in rows]


def longhand(entries) -> list[list[tuple]]:
    best = []
    for feature in range(3):
        mine = sorted((-score, *rest) for i, score, *rest in entries if i == feature)
        seen, places = set(), []
        for score, document, position, context in mine:
            if context not in seen:
                seen.add(context)
                places.append((-score, document, position, context))
        best.append(places[:SIZE])
    return best


@settings(max_examples=50)
@given(st.lists(ENTRY, max_size=40), st.integers(1, 40))
def test_the_best_of_each_feature_are_kept_whatever_comes_when(entries, batch):
    leaders = offered([])
    for start in range(0, len(entries), batch):
        offered(entries[start : start + batch], leaders)
    assert kept(leaders) == longhand(entries)
    fields = leaders.fields
    assert torch.equal(fields["payload"], torch.stack([fields["document"], fields["position"]], 2))


@settings(max_examples=50)
@given(st.lists(ENTRY, max_size=40), st.integers(0, 40))
def test_two_parts_together_are_the_whole(entries, cut):
    leaders = offered(entries[:cut])
    leaders.merge(offered(entries[cut:]))
    assert kept(leaders) == longhand(entries)
