"""A node as a process of its own, for tests that talk HTTP to it and kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ledger.jobs import KeyRole
from node.apikeys import issue_key
from node.datadir import DataDirectory, create_data_directory

ROOT = Path(__file__).parent.parent
GENESIS_TIME_MS = 1_700_000_000_000


class LiveNode:
    """`python -m node run` on an ephemeral port. Keys are made while it does not run."""

    command = "run"

    def __init__(self, root: Path, *arguments: str) -> None:
        self.data = self._prepare(root)
        self.url = ""
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None

    def _prepare(self, root: Path) -> DataDirectory:
        return create_data_directory(
            root, network="aitbc-test", name="authority-1", now_ms=GENESIS_TIME_MS
        )

    def create_key(self, role: KeyRole, client: str | None = None, *, database: str = "") -> str:
        return issue_key(self.data, role, client=client, now_ms=GENESIS_TIME_MS, database=database)

    def start(self) -> None:
        command = [sys.executable, "-m", "node", self.command, "--data", str(self.data.root)]
        log = self.data.root / "node.log"
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--log-file", str(log), *self._arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"the node did not start, see {log}"
        self.url = line.rsplit(" ", 1)[-1]

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and silent, as those of a host that is cut off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Wait until it ends by itself; returns the exit status."""
        return self._end(None)

    def _end(self, number: int | None) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if number is not None:
            process.send_signal(number)
        status = process.wait(timeout=60)
        assert process.stdout is not None
        process.stdout.close()
        return status


class LiveFollower(LiveNode):
    """`python -m node run --follow …`, which makes its own directory."""

    def __init__(self, root: Path, source: LiveNode, *arguments: str) -> None:
        genesis = str(source.data.genesis)
        super().__init__(root, "--follow", source.url, "--genesis", genesis, *arguments)

    def _prepare(self, root: Path) -> DataDirectory:
        return DataDirectory(root)

    def forget_arguments(self) -> None:
        """From now on it starts with its data directory alone."""
        self._arguments = ()


class LiveFrontEnd(LiveFollower):
    """`python -m node run --role api …` beside an authority that has the same database."""

    def __init__(self, root: Path, source: LiveNode, database: str, *arguments: str) -> None:
        key = str(source.data.authority_key)
        super().__init__(
            root,
            source,
            *("--role", "api", "--database", database, "--coordinator-key", key),
            *arguments,
        )
