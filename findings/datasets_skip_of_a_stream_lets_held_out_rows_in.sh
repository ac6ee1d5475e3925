#!/usr/bin/env bash
# datasets 4.0.0 and 5.2.0: the same `skip(n)` of a stream skips other rows once workers or processes share the stream.
#
# take(n) for a validation set and skip(n) for the training set are the documented way to split a stream. Read by one
# process they part it. A DataLoader with workers hands every worker shards of its own, and the n is shared out: each
# worker skips its part of n at the beginning of its own shards. So rows of the validation set are trained on, and as
# many rows are in neither set. split_dataset_by_node after skip() does the same wherever the number of shards is a
# multiple of the number of processes, and the right thing where it is not. Counts come out right: no row comes twice.
# Expected: take(10) and skip(10) have no row in common, however many workers read.
# Seen with 4 shards of 10 rows (rows of take(10) that skip(10) gives too, rows that neither gives):
#   workers or processes   1      2      3                          4
#   DataLoader             0, 0   5, 5   6, 6                       7, 7
#   by node                0, 0   5, 5   0, 0 (no multiple)         7, 7
# One reader is not safe either. The documentation says to shuffle before such a split, and to call set_epoch for
# another order in each epoch, as transformers' Trainer does. skip(n) then skips the first n rows of the new order.
# Seen with shuffle(seed=0, buffer_size=20) before the split: in epoch 0 no held-out row is trained on, in epoch 1 and
# epoch 2 some of the ten are (ten and eight with 4.0.0, six and three with 5.2.0).
# No warning is given. Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import datasets
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader


def rows(starts):
    """Ten rows for each shard; row i holds the number i."""
    for start in starts:
        for row in range(start, start + 10):
            yield {"row": row}


stream = IterableDataset.from_generator(rows, gen_kwargs={"starts": [0, 10, 20, 30]})
held_out = {row["row"] for row in stream.take(10)}
training = stream.skip(10)


def told(read):
    """How many held-out rows are trained on, and how many rows are in neither set."""
    assert len(read) == len(set(read)) == 30
    return len(held_out & set(read)), len(set(range(40)) - held_out - set(read))


print("datasets", datasets.__version__)
found = []
for readers in (1, 2, 3, 4):
    loader = DataLoader(training, batch_size=None, num_workers=readers, multiprocessing_context="fork")
    by_worker = [row["row"] for row in loader]
    by_node = [row["row"] for rank in range(readers) for row in split_dataset_by_node(training, rank, readers)]
    found += [(told(by_worker), told(by_node))]
    print(readers, "readers: DataLoader", *found[-1][0], " by node", *found[-1][1])
shuffled = stream.shuffle(seed=0, buffer_size=20)
kept, training = {row["row"] for row in shuffled.take(10)}, shuffled.skip(10)
leaks = []
for epoch in range(3):
    training.set_epoch(epoch)
    read = {row["row"] for row in training}
    assert len(kept) == 10 and len(read) == 30
    leaks += [len(kept & read)]
print("shuffled before the split, held-out rows that are trained on in epochs 0, 1 and 2:", *leaks)
expected = [((0, 0), (0, 0)), ((5, 5), (5, 5)), ((6, 6), (0, 0)), ((7, 7), (7, 7))]
sys.exit(held_out != set(range(10)) or found != expected or leaks[0] or not all(leaks[1:]))
PYTHON

python3 -m venv "$folder/env"
for release in 4.0.0 5.2.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "datasets==$release"
    HF_HOME="$folder/hub" "$folder/env/bin/python" -W ignore "$folder/check.py"
done
