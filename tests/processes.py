"""Real processes (gloo) for tests of what several do together, and ports where they meet."""

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as distributed

PROCESSES = 2


def in_two_processes(work: Callable[[int, Path], None], folder: Path) -> None:
    """Runs `work(rank, folder)` in each of two processes of one group, and waits for both to end well.

    Args:
        work: A function of a module, so that a new process can import it.
        folder: Where the processes meet and leave what they found.
    """
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_in_process, args=(work, rank, folder)) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert worker.exitcode == 0


def free_port() -> int:
    """A port that nobody listens at now: tests that run side by side must not meet at one."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _in_process(work: Callable[[int, Path], None], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    try:
        work(rank, folder)
    finally:
        distributed.destroy_process_group()
