"""Training steps of this checkout and of another one, each in a process of its own, in turn: `step.py --against`.

Run as a script it is one of the two processes: it takes the step from `benchmarks/step.py` and `hfsae` of the checkout
that it is given, so that each runs its own code, and does what it reads from its standard input, a line at a time.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

OURS = Path(__file__).resolve().parent.parent


@dataclass
class Pairs:
    """One row of the table: seconds of every pair of steps, and of our encoder products between them."""

    architecture: str
    active: int
    ours: list[float]
    theirs: list[float]
    products: list[float]
    our_peak: int | None
    their_peak: int | None

    @property
    def ratios(self) -> list[float]:
        """Ours to theirs, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]


class _Process:
    """A checkout's steps, waiting to be asked for the next."""

    def __init__(self, checkout: Path, clock: str):
        path = os.pathsep.join([str(checkout), str(checkout / "benchmarks")])
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(checkout), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # What is freed goes back at once, so that the peak is what is alive; timed steps keep it all the same.
            env={**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"},
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Has it do something and waits for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._process.args[2]} ended: see above.")  # type: ignore[index]
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure_pairs(
    checkout: Path,
    cases: list[tuple[str, int]],
    shape: dict[str, int],
    options: dict[str, Any],
    repeats: int,
    clock: str,
) -> list[Pairs]:
    """Steps of both checkouts in turn, the one that begins changing from pair to pair.

    Args:
        checkout: The other one.
        cases: Architectures and numbers of active features.
        shape: `tokens`, `d_in` and `n_features`.
        options: `dead` and `bf16` of `make_learner`.
        repeats: Pairs of each case.
        clock: `"wall"`, or `"cpu"`: the processor time of the process, where other work runs beside.
    """
    found = []
    ours, theirs = _Process(OURS, clock), _Process(checkout, clock)
    try:
        for architecture, active in cases:
            case = {"architecture": architecture, "active": active, "shape": shape, **options}
            peaks = [process.ask("make", **case) for process in (ours, theirs)]
            seconds: dict[_Process, list[float]] = {ours: [], theirs: []}
            products = []
            for repeat in range(repeats):
                for process in (ours, theirs) if repeat % 2 else (theirs, ours):
                    seconds[process].append(process.ask("step"))
                products.append(ours.ask("product"))
            found.append(Pairs(architecture, active, seconds[ours], seconds[theirs], products, *peaks))
            print(table(found[-1:]).splitlines()[-1], flush=True)
    finally:
        for process in (ours, theirs):
            process.close()
    return found


def table(pairs: list[Pairs]) -> str:
    """The pairs in Markdown."""
    lines = [
        "| architecture | active | ours, s | theirs, s | ours / theirs | from … to "
        "| ours / product | theirs / product | peak, MB | theirs, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in pairs:
        product = median(p.products)
        peaks = ["" if peak is None else f"{peak / 1e6:.0f}" for peak in (p.our_peak, p.their_peak)]
        lines.append(
            f"| {p.architecture} | {p.active} | {median(p.ours):.3f} | {median(p.theirs):.3f} "
            f"| {median(p.ratios):.3f} | {min(p.ratios):.3f} … {max(p.ratios):.3f} "
            f"| {median(p.ours) / product:.2f} | {median(p.theirs) / product:.2f} | {peaks[0]} | {peaks[1]} |"
        )
    return "\n".join(lines)


def _serve(checkout: Path, clock: str) -> None:
    """Does what standard input says with the code of one checkout."""
    import step  # the checkout's own: it comes first on the path
    import torch

    import hfsae

    for module in (step, hfsae):
        assert module.__file__ is not None and Path(module.__file__).resolve().is_relative_to(checkout), module
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    read = time.process_time if clock == "cpu" else time.perf_counter

    def seconds(what: Any) -> float:
        begin = read()
        what()
        return read() - begin

    rows = weight = take = None
    with ExitStack() as kept:
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["what"] == "make":
                kept.close()  # how far memory rises is only seen where it is given back
                shape = step.Shape(**asked["shape"])
                rows = step.planted(shape, torch.device("cpu"))
                learner = step.make_learner(
                    asked["architecture"], rows, shape, asked["active"], asked["dead"], asked["bf16"]
                )
                steps = iter(range(10**6))
                take = lambda learner=learner, rows=rows, steps=steps: learner.step([rows], next(steps))  # noqa: E731
                weight = torch.randn(shape.n_features, shape.d_in)
                take()
                with step.PeakMemory(torch.device("cpu")) as peak:
                    take()
                answer = peak.bytes
                kept.enter_context(step.freed_memory_kept())  # wherever that checkout has it
                take()
            elif asked["what"] == "step":
                answer = seconds(take)
            else:
                assert rows is not None and weight is not None
                answer = seconds(lambda rows=rows, weight=weight: rows @ weight.T)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, which would come before the checkout's
    _serve(Path(sys.argv[1]).resolve(), sys.argv[2])
