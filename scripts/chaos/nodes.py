"""The processes: made, started, killed, paused, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ledger.errors import LedgerError
from node.apikeys import issue_key
from node.clock import read_clock_ms
from node.config import format_options
from node.datadir import DataDirectory, Founder, create_follower_directory, create_network
from node.files import write_private
from node.local.ports import HOST, choose_ports
from scripts.bench_figures.load import MODEL
from scripts.bench_figures.node_process import ROOT
from scripts.chaos.clocked import write_offset

AUTHORITIES = 4
STOP_TIMEOUT_S = 60.0
OPTIONS: Mapping[str, str | int] = {
    "host": HOST,
    "default_model": MODEL,
    # Jobs whose miner was cut off are soon somebody else's.
    "lease_ms": 3000,
    "heartbeat_interval_ms": 1000,
    "max_pending_per_key": 1_000_000,
    "audit_rate": 0,
}


class ChaosError(LedgerError):
    """The network did something that it must never do."""


def require(holds: object, sentence: str) -> None:
    """Raise unless a promise was kept."""
    if not holds:
        raise ChaosError(sentence)


@dataclass(kw_only=True)
class Node:
    """One node, whether its process runs or not."""

    name: str
    command: str
    data: DataDirectory
    log: Path
    """What it has to say; not on the disk that fills up."""
    port: int
    """Where clients reach it."""
    proxy: int
    """Where other nodes reach it."""
    admin_key: str = ""
    process: subprocess.Popen[str] | None = None
    paused: bool = False
    may_end: bool = False
    """Its disk is full: it may stop by itself."""

    @property
    def is_authority(self) -> bool:
        """Whether it votes and coordinates."""
        return bool(self.admin_key)

    @property
    def is_serving(self) -> bool:
        """Whether somebody would answer."""
        return self.process is not None and not self.paused

    def count_complaints(self) -> int:
        """Count the warnings and errors in its log."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return sum(" WARNING " in line or " ERROR " in line for line in lines)

    def count_tracebacks(self) -> int:
        """Count the exceptions in its log."""
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            return sum(line.startswith("Traceback") for line in lines)


class Processes:
    """Nodes by name, each a process that is started and ended here."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.all: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        """Take in a node whose directory is made."""
        self.all[node.name] = node
        write_offset(self._clock(node.name), 0)

    def find_pids(self) -> dict[str, int]:
        """Return the process of each node that runs."""
        return {n.name: n.process.pid for n in self.all.values() if n.process is not None}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let everything that runs end with the context."""
        try:
            yield
        finally:
            for node in self.all.values():
                if node.process is not None:
                    node.process.kill()
                    _close(_take(node))

    async def start(self, node: Node) -> None:
        """Start one and wait until it listens."""
        node.process = self._spawn(node)
        assert node.process.stdout is not None
        line = await asyncio.to_thread(node.process.stdout.readline)
        require(line, f"{node.name} did not start, see {node.log}")

    async def kill(self, node: Node) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        await _end(_take(node), signal.SIGKILL)

    async def stop(self, node: Node) -> None:
        """SIGTERM; it must end well."""
        status = await _end(_take(node), signal.SIGTERM)
        require(status == 0, f"{node.name} ended with {status} after SIGTERM, see {node.log}")

    def pause(self, node: Node) -> None:
        """SIGSTOP."""
        assert node.process is not None
        node.process.send_signal(signal.SIGSTOP)
        node.paused = True

    def resume(self, node: Node) -> None:
        """SIGCONT."""
        assert node.process is not None
        node.process.send_signal(signal.SIGCONT)
        node.paused = False

    def move_clock(self, node: Node, offset_ms: int) -> None:
        """Let a node's wall clock be ahead or behind."""
        write_offset(self._clock(node.name), offset_ms)

    def note_ended(self, node: Node) -> bool:
        """Tell whether its process has ended by itself.

        Raises:
            ChaosError: it had no reason to.
        """
        if node.process is None or node.process.poll() is None:
            return False
        status = node.process.returncode
        require(node.may_end, f"{node.name} ended by itself with {status}, see {node.log}")
        _close(_take(node))
        return True

    def _spawn(self, node: Node) -> subprocess.Popen[str]:
        command = [node.command, "--data", str(node.data.root), "--log-file", str(node.log)]
        clocked = ["-m", "scripts.chaos.clocked", str(self._clock(node.name))]
        return subprocess.Popen(
            [sys.executable, *clocked, *command, "--until-stdin-closes"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _clock(self, name: str) -> Path:
        return self._root / f"{name}.clock"


class Nodes(Processes):
    """A network: authorities, a follower and a witness."""

    def __init__(self, root: Path, disk: Path | None) -> None:
        """Make their directories; the last authority's on `disk`, if there is one."""
        super().__init__(root)
        names = [f"authority-{i + 1}" for i in range(AUTHORITIES)]
        followers = {"follower": "run", "witness": "witness"}
        ports = choose_ports(0, 2 * (len(names) + len(followers)))
        founders = [
            Founder(
                root=(disk if disk and name == names[-1] else root) / name,
                name=name,
                url=f"http://{HOST}:{ports[2 * i + 1]}",
            )
            for i, name in enumerate(names)
        ]
        made = create_network(founders, network="aitbc-chaos", now_ms=read_clock_ms())
        genesis = made[0].load_genesis()
        made += [create_follower_directory(root / name, genesis) for name in followers]
        for i, data in enumerate(made):
            name, (port, proxy) = data.root.name, ports[2 * i : 2 * i + 2]
            options: dict[str, str | int | list[str]] = {**OPTIONS, "port": port}
            if name in followers:
                options["follow"] = [founder.url for founder in founders]
            write_private(data.options, format_options(options))
            self.add(
                Node(
                    name=name,
                    command=followers.get(name, "run"),
                    data=data,
                    log=root / f"{name}.log",
                    port=port,
                    proxy=proxy,
                    admin_key=issue_key(data, "admin", now_ms=read_clock_ms())
                    if name in names
                    else "",
                )
            )

    @property
    def authorities(self) -> list[Node]:
        """Those that vote."""
        return [node for node in self.all.values() if node.is_authority]


def _take(node: Node) -> subprocess.Popen[str]:
    """Take a node's process out of it, so that nobody wonders why it ends."""
    process, node.process, node.paused = node.process, None, False
    assert process is not None
    return process


async def _end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    process.send_signal(number)
    status = await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
    _close(process)
    return status


def _close(process: subprocess.Popen[str]) -> None:
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
