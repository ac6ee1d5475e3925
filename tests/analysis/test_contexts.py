import torch

from hfsae.analysis.contexts import NO_TOKEN, context_numbers, random_numbers, strongest, windows
from hfsae.analysis.document_sequences import DocumentSequences
from hfsae.analysis.feature_reader import Firings
from hfsae.data import TokenBatch


def pieces(rows: list[list[int]]) -> DocumentSequences:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return DocumentSequences(
        TokenBatch(ids, mask, mask.bool()), torch.arange(len(rows)), torch.zeros(len(rows)).long()
    )


def test_equal_contexts_have_equal_numbers_and_different_ones_have_not():
    rows = torch.randint(0, 3, (40, 12), generator=torch.Generator().manual_seed(0)).tolist()
    numbers = context_numbers(pieces(rows), before=2).view(40, 12).tolist()
    contexts = [tuple(row[max(0, column - 2) : column + 1]) for row in rows for column in range(12)]
    flat = [number for row in numbers for number in row]
    assert len(set(flat)) == len(set(contexts)) == len(set(zip(flat, contexts, strict=True)))


def test_random_numbers_are_uniform_and_the_same_each_time():
    contexts = torch.arange(20000)
    drawn = random_numbers(contexts, torch.full_like(contexts, 3), seed=0)
    assert torch.equal(drawn, random_numbers(contexts, torch.full_like(contexts, 3), seed=0))
    counts = torch.histc(drawn, bins=10, min=0, max=1)
    assert ((counts - 2000).abs() < 200).all()
    other = random_numbers(contexts, torch.full_like(contexts, 4), seed=0)
    assert torch.corrcoef(torch.stack([drawn, other]))[0, 1].abs() < 0.03


def test_windows_hold_the_tokens_around_and_one_features_activations():
    batch = pieces([[5, 6, 7, 8], [9, 10]])
    firings = Firings(torch.tensor([1, 2, 2, 4]), torch.tensor([1, 0, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]), 2)
    tokens, features = torch.tensor([2, 2, 4]), torch.tensor([1, 0, 1])
    ids, activations = windows(batch, firings, tokens, features, before=1, after=2)
    assert ids.tolist() == [[6, 7, 8, NO_TOKEN], [6, 7, 8, NO_TOKEN], [NO_TOKEN, 9, 10, NO_TOKEN]]
    assert activations.tolist() == [[1, 3, 0, 0], [0, 2, 0, 0], [0, 4, 0, 0]]


def test_the_strongest_features_of_each_token():
    firings = Firings(torch.tensor([1, 1, 1, 3]), torch.tensor([4, 2, 9, 0]), torch.tensor([1.0, 3.0, 2.0, 1.0]), 10)
    features = strongest(firings, torch.tensor([3, 1, 3]), 2)
    assert features.dtype == torch.int32 and features.tolist() == [[0, -1], [2, 9], [0, -1]]
    assert strongest(firings, torch.tensor([1, 2]), 4).tolist() == [[2, 9, 4, -1], [-1, -1, -1, -1]]
    assert strongest(firings, torch.tensor([], dtype=torch.long), 2).shape == (0, 2)


def test_of_equally_strong_features_the_first_entry_comes_first():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 30, (400,), generator=generator).sort().values
    values = torch.randint(1, 4, (400,), generator=generator).float()
    firings = Firings(tokens, torch.randint(0, 99, (400,), generator=generator), values, 99)
    found = strongest(firings, torch.arange(30), 5)
    for token in range(30):
        mine = (tokens == token).nonzero()[:, 0].tolist()
        best = sorted(mine, key=lambda entry: -firings.values[entry])[:5]
        assert found[token].tolist()[: len(best)] == firings.features[best].tolist()
