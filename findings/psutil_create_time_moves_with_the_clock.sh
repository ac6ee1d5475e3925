#!/usr/bin/env bash
# psutil 7.2.2 on Linux: the create_time() of a living process is another one after the system's clock was put right.
#
# Linux keeps when a process began in ticks since the machine did. psutil adds the machine's own start, `btime` of
# /proc/stat, which the kernel computes from the present time of day: it moves with every step of the clock. psutil reads
# it whenever a Process object is asked for the first time, so two objects of one process give two times. Process(pid)
# compares ticks since then, so that `==` and is_running() hold.
# Expected of (pid, create_time()), by which programs tell a process from a later one of its number: that it never
# changes while the process lives.
# Seen: with `btime` three seconds later create_time() is three seconds later; the objects are equal, both are running.
# A copy of /proc whose `stat` is put three seconds on stands for the step, since a test should not set the clock.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check psutil==7.2.2
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import os
import re
import sys
from pathlib import Path

import psutil

proc = Path(sys.argv[1], "proc")
proc.mkdir()
(proc / str(os.getpid())).symlink_to("/proc/self")
stat = Path("/proc/stat").read_text()
began = int(re.search(r"^btime (\d+)", stat, re.M)[1])

(proc / "stat").write_text(stat)
psutil.PROCFS_PATH = str(proc)
before = psutil.Process()
time_before = before.create_time()
(proc / "stat").write_text(stat.replace(f"btime {began}", f"btime {began + 3}"))
after = psutil.Process()
moved = after.create_time() - time_before

print("psutil", psutil.__version__)
print(f"create_time() of the same process moved by {moved:.2f} s")
print("equal:", before == after, "- running:", before.is_running(), after.is_running())
sys.exit(not (abs(moved - 3) < 1e-6 and before == after and before.is_running() and after.is_running()))
PYTHON
