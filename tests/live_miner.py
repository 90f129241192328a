"""A miner as a process of its own, with a real model, for tests that kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.live import ROOT


class LiveMiner:
    """`python -m node miner`; its log is a file, its model's digest is kept below `root`."""

    def __init__(
        self, root: Path, *, url: str, key: str, name: str, models: dict[str, Path], slots: int = 8
    ) -> None:
        self.log = root / f"{name}.log"
        self._root = root
        self._command = [
            *(sys.executable, "-m", "node", "miner", "--url", url, "--miner-id", name),
            *("--keyfile", str(root / f"{name}.json"), "--log-file", str(self.log)),
            *("--threads", "1", "--slots", str(slots)),
            *(part for item in models.items() for part in ("--model", "{}={}".format(*item))),
        ]
        self._environment = {"AITBC_KEY": key, "AITBC_MODELS": str(root / "models")}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [*self._command, *arguments],
            env={**os.environ, **self._environment, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(timeout=60)
