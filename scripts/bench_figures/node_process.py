"""A real node in a process of its own, on an ephemeral port of the loopback."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ledger.errors import StoreError
from ledger.jobs import KeyRole
from node.apikeys import issue_key
from node.clock import read_clock_ms
from node.datadir import DataDirectory, create_data_directory
from scripts.bench_figures.measure import read_cpu_s

ROOT = Path(__file__).resolve().parents[2]
STOP_TIMEOUT_S = 30
MAX_LOG_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNode:
    """Where a node is reached."""

    pid: int
    port: int

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used."""
        return read_cpu_s(self.pid)


def make_data_directory(root: Path, *, created_ms: int) -> DataDirectory:
    """Make the directory of a new network of one authority."""
    return create_data_directory(root, network="aitbc-bench", name="authority-1", now_ms=created_ms)


def make_api_key(data: DataDirectory, role: KeyRole) -> str:
    """Make an API key while no node runs."""
    return issue_key(data, role, now_ms=read_clock_ms())


@contextlib.contextmanager
def run_node(data: DataDirectory) -> Iterator[RunningNode]:
    """Run `python -m node run` as it comes, and stop it at the end.

    Raises:
        StoreError: it did not start.
    """
    log = data.root / "node.log"
    command = [sys.executable, "-m", "node", "run", "--data", str(data.root), "--port", "0"]
    # It also ends by itself if this process dies.
    command += ["--log-file", str(log), "--until-stdin-closes"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise StoreError(f"the node did not start: {log.read_text()[-MAX_LOG_SHOWN:]}")
            yield RunningNode(pid=process.pid, port=int(line.rsplit(":", 1)[1]))
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
