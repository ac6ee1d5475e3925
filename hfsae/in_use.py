"""One writer a folder: a lock that names the process which holds it, and ends with that process however it ends."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK, _HOLDER = ".in-use.lock", ".in-use.json"


class FolderInUseError(FileExistsError):
    """Another process writes into the folder; the message says which."""


@contextmanager
def in_use(folder: str | Path) -> Iterator[None]:
    """Holds a folder, which is made where there is none, for as long as the context lasts.

    The system itself lets go of the lock of a process that was killed. Where a file system knows no locks the folder
    is not held, and nothing is said.

    Raises:
        FolderInUseError: If another process, or another run of this one, holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"{folder} is in use by {_holder(folder)}. Choose another folder, or wait until that one has ended."
        ) from None
    except NotImplementedError:
        yield
        return
    try:
        said = {
            "pid": os.getpid(),
            "host": platform.node(),
            "command": " ".join(map(os.path.basename, sys.argv[:2])),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        (folder / _HOLDER).write_text(json.dumps(said))
        yield
    finally:
        # While it is still held: whoever opened the file before sees that it is gone, and tries again.
        (folder / _HOLDER).unlink(missing_ok=True)
        (folder / _LOCK).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        said = json.loads((folder / _HOLDER).read_text())
        return f"process {said['pid']} on {said['host']} ({said['command']}, since {said['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # just begun, or just ended
        return "another process"
