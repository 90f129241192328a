"""Starts the runners, each in the environment that holds its libraries, and asks them in turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from scripts.bench_miner.work import Answer, Request, Setup, dump

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = ROOT / "build" / "peers" / "bin" / "python"


ENDING_TIMEOUT_S: Final = 60
"""For a process whose output has ended already."""


class RunnerError(Exception):
    """A runner could not be started, or ended before it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The same weights in every form that a runner takes."""

    onnx: Path
    """As the miner serves them."""
    rounded: Path
    """The same graph, but its layers round their inputs to 8 bits, as usual int4 exports do."""
    gguf: Path
    """As published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What there is to know of a runner before it runs."""

    key: str
    title: str
    module: str
    """In the package `runners`."""
    model: Literal["onnx", "rounded", "gguf"]
    """The field of `Models` that it runs."""
    needs: str | None = None
    """For peers: a module that their environment has if the runner was installed."""


KINDS: Final = {
    kind.key: kind
    for kind in (
        Kind(key="runtime", title="miner, runtime", module="runtime", model="onnx"),
        Kind(key="engine", title="miner, engine", module="engine", model="onnx"),
        Kind(
            key="genai",
            title="ONNX Runtime GenAI",
            module="genai",
            model="onnx",
            needs="onnxruntime_genai",
        ),
        Kind(
            key="runtime-rounded",
            title="miner, runtime, rounded",
            module="runtime",
            model="rounded",
        ),
        Kind(
            key="genai-rounded",
            title="ONNX Runtime GenAI, rounded",
            module="genai",
            model="rounded",
            needs="onnxruntime_genai",
        ),
        Kind(
            key="llamacpp",
            title="llama.cpp",
            module="llamacpp",
            model="gguf",
            needs="llama_cpp",
        ),
        Kind(
            key="transformers",
            title="transformers",
            module="transformers_fp32",
            model="gguf",
            needs="torch",
        ),
    )
}


class Worker:
    """One runner's process."""

    def __init__(self, kind: Kind, models: Models, threads: int, said: IO[str]) -> None:
        """Start it and wait until its model is loaded; what it says goes into a file.

        Raises:
            RunnerError: it ended before.
        """
        self.kind = kind
        self._said = said
        setup = Setup(model=str(getattr(models, kind.model)), threads=threads)
        self._process = subprocess.Popen(
            build_command(kind, setup),
            cwd=ROOT,
            env=build_environment(dict(os.environ), threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.version: str = json.loads(self._read_line())

    def ask(self, request: Request) -> Answer:
        """Let it work; blocks.

        Raises:
            RunnerError: it ended before it answered.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(dump(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._build_error() from None
        return Answer(**json.loads(self._read_line()))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read_line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._build_error()
        return line

    def _build_error(self) -> RunnerError:
        """With the last line that the process said, and the process gone."""
        self._process.wait(timeout=ENDING_TIMEOUT_S)
        self._said.seek(0)
        lines = self._said.read().strip().splitlines() or ["it gave no reason"]
        self.close()
        return RunnerError(f"{self.kind.title} ended too early: {lines[-1]}")


def build_command(kind: Kind, setup: Setup) -> list[str]:
    """How a runner is started."""
    python = str(PEERS) if kind.needs else sys.executable
    return [python, "-m", "scripts.bench_miner.worker", kind.module, dump(setup)]


def build_environment(base: dict[str, str], threads: int) -> dict[str, str]:
    """The environment of a runner: so many threads, and no word to anybody about it."""
    silent = dict.fromkeys(
        ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "TQDM_DISABLE"), "1"
    )
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return base | silent | pools


def is_installed(kind: Kind) -> bool:
    """Whether the environment of a runner has what it needs."""
    if kind.needs is None:
        return True
    if not PEERS.exists():
        return False
    find = f"import importlib.util as u, sys; sys.exit(u.find_spec({kind.needs!r}) is None)"
    return subprocess.run([PEERS, "-c", find], check=False).returncode == 0


@contextmanager
def open_workers(kinds: Sequence[Kind], models: Models, threads: int) -> Iterator[list[Worker]]:
    """All of them, loaded and idle.

    Raises:
        RunnerError: one does not start.
    """
    with ExitStack() as stack:
        workers = []
        for kind in kinds:
            said = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            worker = Worker(kind, models, threads, said)
            stack.callback(worker.close)
            workers.append(worker)
        yield workers
