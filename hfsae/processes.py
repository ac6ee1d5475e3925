"""Several processes that work together: who this one is, and how all learn that one of them failed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as distributed


def has_group() -> bool:
    """Whether this process belongs to a default `torch.distributed` group."""
    return distributed.is_available() and distributed.is_initialized()


def process() -> tuple[int, int]:
    """This process's rank in the default `torch.distributed` group and the number of processes; (0, 1) without one."""
    return (distributed.get_rank(), distributed.get_world_size()) if has_group() else (0, 1)


def refuse_no_process(rank: int, world_size: int) -> None:
    """Refuses numbers that are no process of so many.

    Raises:
        ValueError: Says what was expected.
    """
    if not 0 <= rank < world_size:
        raise ValueError(
            f"rank is {rank} of world_size={world_size}: expected a world_size of at least 1, and a rank from 0 to "
            "world_size - 1."
        )


@contextmanager
def all_or_none(together: bool = True) -> Iterator[None]:
    """Where one process fails, all of them do: none waits for ever for what the other will not send.

    Every process must enter this context as often as the others, and must not wait for others inside of it.

    Args:
        together: Whether several processes do this together; otherwise nothing is exchanged.

    Raises:
        RuntimeError: Where another process failed and this one did not; says which and why.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as own:
        error = own
    rank, processes = process() if together else (0, 1)
    if processes > 1:
        told: list[str | None] = [None] * processes
        distributed.all_gather_object(told, None if error is None else f"{type(error).__name__}: {error}")
        for other, message in enumerate(told):
            if error is None and message is not None and other != rank:
                raise RuntimeError(f"process {other} failed: {message}")
    if error is not None:
        raise error
