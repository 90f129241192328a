"""A real node in a process of its own, on an ephemeral port of the loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ledger.jobs import KeyRole
from node.apikeys import issue_key
from node.clock import read_clock_ms
from node.datadir import DataDirectory, create_data_directory
from node.local.children import child, read_address
from scripts.bench_figures.measure import read_cpu_s, read_threads_s

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningNode:
    """Where a node is reached."""

    pid: int
    port: int

    @property
    def cpu_s(self) -> float:
        """Processor time that it has used."""
        return read_cpu_s(self.pid)

    @property
    def threads_s(self) -> dict[str, float]:
        """The same for each of its threads, by name."""
        return read_threads_s(self.pid)


def read_memory(pid: int) -> float:
    """Return how many megabytes of memory a process has to itself. Linux only."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1000


def make_data_directory(root: Path, *, created_ms: int) -> DataDirectory:
    """Make the directory of a new network of one authority."""
    return create_data_directory(root, network="aitbc-bench", name="authority-1", now_ms=created_ms)


def make_api_key(data: DataDirectory, role: KeyRole) -> str:
    """Make an API key while no node runs."""
    return issue_key(data, role, now_ms=read_clock_ms())


@contextlib.contextmanager
def run_node(data: DataDirectory, *options: str, log: Path | None = None) -> Iterator[RunningNode]:
    """Run `python -m node run`, with nothing but these options, and stop it at the end.

    Its log is in its directory, or in `log` where the run makes that.
    """
    file = str(log or data.root / "node.log")
    command = ["run", "--data", str(data.root), "--port", "0", "--log-file", file, *options]
    with child(command, {}) as node:
        yield RunningNode(pid=node.pid, port=int(read_address(node).rsplit(":", 1)[1]))
