"""Nodes and miners as processes of our own.

A child's standard input is a pipe from here: should this process die, the child ends too. Each has
a session of its own, so that Ctrl-C reaches it through us, in order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ledger.errors import StoreError
from node.config import EMBEDDED_MODEL

STOP_TIMEOUT_S = 20.0
INTERRUPTED = 130
"""Exit status of a run that was to end by itself; what a shell gives for SIGINT."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived."""


@contextmanager
def child(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m node COMMAND`, and end it with the context: SIGTERM, later SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "node", *command, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def read_address(node: subprocess.Popen[str]) -> str:
    """Return a node's address: its first line of output, once its socket listens, ends in it."""
    assert node.stdout is not None
    line = node.stdout.readline().strip()
    if not line:
        node.wait()
        raise click.exceptions.Exit(1)  # the node has said why, in one line
    return line.rsplit(" ", 1)[-1]


def miner_command(*, url: str, keyfile: Path, miner_id: str, threads: int, log: Path) -> list[str]:
    """Return the command of a miner that serves the embedded model."""
    return [
        "miner",
        *("--url", url),
        *("--keyfile", str(keyfile)),
        *("--miner-id", miner_id),
        *("--model", EMBEDDED_MODEL),  # the variant for what the miner runs on
        *("--threads", str(threads)),
        *("--log-file", str(log)),
    ]


def check_alive(name: str, process: subprocess.Popen[str], log: Path) -> None:
    """Raise if a child has ended.

    Raises:
        StoreError: it has; says where its log is.
    """
    if process.poll() is not None:
        raise StoreError(f"the {name} ended by itself (exit {process.returncode}); see {log}")


def run_interruptible(run: Callable[[], int], *, is_endless: bool) -> int:
    """Return the exit status of `run`, which SIGINT or SIGTERM may end."""
    _raise_on_signals()
    try:
        return run()
    except Interrupted:
        click.echo("Stopped.")
        return 0 if is_endless else INTERRUPTED


def _raise_on_signals() -> None:
    """Let SIGINT and SIGTERM raise `Interrupted`, once: what follows is tidying up."""

    def interrupt(_number: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
