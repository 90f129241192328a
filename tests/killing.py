"""Kills a process at each step of something in turn.

A step is a call that changes files, a file that is opened to be written, or a report of progress.
The work is done in a fork each time, so this module is a process of its own, with one thread:

    python -m tests.killing backup DATA OUTPUT
    python -m tests.killing restore DATA BACKUP

`{}` in DATA or OUTPUT becomes the number of the step. It prints how many steps there were; the last
one was not reached, so the work is done there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from node.backup import make_backup
from node.datadir import DataDirectory
from node.manifest import open_backup
from node.restore import restore_backup

STEPS = {"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "sqlite3.connect", "progress"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MAX_STEPS = 400


def count_down(steps: int) -> None:
    """Let this process die at the step with this number, counted from now on."""
    left = steps

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in STEPS or (event == "open" and arguments[2] & WRITING):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def report(*_: object) -> None:
    sys.audit("progress")


def back_up(data: Path, output: Path) -> None:
    make_backup(DataDirectory(data), output, release="test", now_ms=1, progress=report)


def restore(data: Path, source: Path) -> None:
    with open_backup(source) as backup:
        restore_backup(backup, DataDirectory(data), replace=True, now_ms=1, progress=report)


def main(work: str, first: str, second: str) -> None:
    do = {"backup": back_up, "restore": restore}[work]
    for step in range(MAX_STEPS):
        child = os.fork()
        if child == 0:
            count_down(step)
            do(Path(first.format(step)), Path(second.format(step)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            sys.stdout.write(str(step))
            return
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError(f"not done after {MAX_STEPS} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
