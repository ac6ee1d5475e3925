"""Starts processes of one run that share their imports, which take a process longer than what a test has it do.

    python -m tests.forked PROCESSES -m MODULE ARGUMENT...

What torchrun does for one machine: each process runs the `main` of the module and has its rank in the environment. The
store that they meet by is this process's. If one fails, the others are ended. Where a test is about how users launch a
run it uses torchrun itself.
"""

import atexit
import gc
import os
import signal
import socket
import sys
from importlib import import_module

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]


def main(processes: str, _: str, module: str, *arguments: str) -> None:
    """Imports the module once, and runs it in so many children."""
    work, world = import_module(module).main, int(processes)
    listener = socket.create_server(("127.0.0.1", 0))  # held from here on: nobody else can take its port
    port = listener.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": str(True)}
    meeting |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    gc.freeze()  # a search for garbage, which each run of several processes has, would go through all that is imported
    atexit.register(gc.unfreeze)  # what is never freed is told as a leak by triton, at the end of every process
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            listener.close()
            os.environ |= {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            return work(*arguments)
        children.append(child)
    _store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    failed = False
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status and not failed:
            failed = True
            print(f"process {ended} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
            for child in children:
                os.kill(child, signal.SIGTERM)
    sys.exit(failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
