"""`aitbc network` as a process, whose nodes a script may end and start again alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ledger.errors import LedgerError
from node.local.network import NetworkFile, NodeEntry
from scripts.bench_figures.node_process import ROOT

STOP_TIMEOUT_S = 60.0


class RehearsalError(LedgerError):
    """The network did something that it must never do."""


def require(holds: object, sentence: str) -> None:
    """Raise unless a promise was kept."""
    if not holds:
        raise RehearsalError(sentence)


class LocalNetwork:
    """`aitbc network` and the nodes that were started alone beside it."""

    def __init__(self, root: Path, *, authorities: int, followers: int) -> None:
        self.root = root
        self._counts = authorities, followers
        self._network: subprocess.Popen[str] | None = None
        self._alone: dict[str, subprocess.Popen[str]] = {}
        self.nodes: dict[str, NodeEntry] = {}

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Start everything; stop whatever runs at the end."""
        authorities, followers = self._counts
        self._network = self._spawn(
            "network",
            *("--data", str(self.root), "--base-port", "0", "--miners", "0"),
            *("--authorities", str(authorities), "--followers", str(followers)),
        )
        try:
            assert self._network.stdout is not None
            for line in self._network.stdout:
                if line.startswith("Explorer"):
                    break
            else:
                raise RehearsalError("the network did not start")
            known = msgspec.json.decode((self.root / "network.json").read_bytes(), type=NetworkFile)
            self.nodes = {node.name: node for node in known.nodes}
            yield
        finally:
            for process in (*self._alone.values(), self._network):
                process.send_signal(signal.SIGINT)
            for process in (*self._alone.values(), self._network):
                _wait(process)

    def end(self, name: str, number: signal.Signals) -> None:
        """Send a node a signal that ends it, and see it ended."""
        alone = self._alone.pop(name, None)
        os.kill(alone.pid if alone else self.nodes[name].pid, number)
        if alone:
            _wait(alone)
        else:
            self.wait_until_ended(name)

    def abandon(self) -> None:
        """Close the network's standard input, as the death of this process would."""
        assert self._network is not None
        assert self._network.stdin is not None
        self._network.stdin.close()

    def wait_until_ended(self, name: str) -> None:
        """Wait until a node that the network started has ended."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_running(self.nodes[name].pid):
            require(time.monotonic() < deadline, f"{name} does not end")
            time.sleep(0.01)

    def start(self, name: str) -> None:
        """Start a node alone, as the README says."""
        log = Path(self.nodes[name].data) / "logs" / "node.log"
        process = self._spawn("run", "--data", self.nodes[name].data, "--log-file", str(log))
        assert process.stdout is not None
        require(process.stdout.readline(), f"{name} did not start")
        self._alone[name] = process

    def count_complaints(self, name: str) -> int:
        """Count the warnings and errors in a node's log."""
        log = Path(self.nodes[name].data) / "logs" / "node.log"
        with log.open() as lines:
            return sum(" WARNING " in line or " ERROR " in line for line in lines)

    def _spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "node", *arguments, "--until-stdin-closes"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _wait(process: subprocess.Popen[str]) -> None:
    process.wait(STOP_TIMEOUT_S)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return False
    return state != "Z"
