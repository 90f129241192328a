"""`aitbc network` as a process, started and stopped by a script."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ledger.errors import StoreError
from node.local.network import NetworkFile, NodeEntry
from scripts.bench_figures.node_process import ROOT

STOP_TIMEOUT_S = 60.0


class LocalNetwork:
    """`aitbc network`, without miners."""

    def __init__(self, root: Path, *, authorities: int, followers: int) -> None:
        self.root = root
        self._counts = authorities, followers
        self._network: subprocess.Popen[str] | None = None
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
                raise StoreError("the network did not start")
            known = msgspec.json.decode((self.root / "network.json").read_bytes(), type=NetworkFile)
            self.nodes = {node.name: node for node in known.nodes}
            yield
        finally:
            self._network.send_signal(signal.SIGINT)
            _wait(self._network)

    def abandon(self) -> None:
        """Close the network's standard input, as the death of this process would."""
        assert self._network is not None
        assert self._network.stdin is not None
        self._network.stdin.close()

    def wait_until_ended(self, name: str) -> None:
        """Wait until a node that the network started has ended."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_running(self.nodes[name].pid):
            if time.monotonic() > deadline:
                raise StoreError(f"{name} does not end")
            time.sleep(0.01)

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
