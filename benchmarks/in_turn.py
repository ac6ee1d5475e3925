"""Steps of several kinds, taken in turn in one process: what benchmarks that compare two of them share."""

import time
from collections.abc import Callable, Mapping

from hfsae.host_memory import freed_memory_kept

_WARM_UP = 2


def seconds_in_turn(steps: Mapping[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Processor time of each step, by its name; the order changes from one turn to the next.

    Args:
        steps: What to time, each called with the number of the turn.
        repeats: How many turns count; two before them warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with freed_memory_kept():
        for step in range(repeats + _WARM_UP):
            for name in sorted(steps, reverse=bool(step % 2)):
                started = time.process_time()
                steps[name](step)
                if step >= _WARM_UP:
                    seconds[name].append(time.process_time() - started)
    return seconds
