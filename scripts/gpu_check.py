"""Check a GPU for mining, and print one table: what holds, what does not, how fast it is.

    make gpu                            the first GPU, the embedded model in half precision
    make gpu ARGS="--gpu 1 --model /models/llama/cuda-fp16"

The CPU is the reference for logits and greedy texts: of the embedded model in full precision, of
another with the same files. With PyTorch in the environment a plain half-precision decoder of the
same shape is timed beside it, with onnxruntime-genai-cuda that one on the same files. `--provider
cpu` tries the checks themselves, without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from miner.errors import MinerError
from miner.models.embedded import default_cache, prepare_embedded_model
from miner.models.layout import find_model
from miner.runtime import CUDA, LlamaRuntime
from miner.runtime.device import Device, ProviderChoice, choose_device
from miner.runtime.gpu import load_nvml, read_gpu
from miner.tokenizer import ChatTokenizer, Message
from scripts.gpu_speed import BATCHES, time_answers, time_steps

QUESTIONS: Final = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue?",
)
REPEATS: Final = 6
REPEATED_TOKENS: Final = 96
LOGIT_TOLERANCE: Final = 0.05
"""Of half precision on two kinds of hardware, relative to how much logits vary."""
CLOSE_CALL: Final = 0.5
"""Two logits this near may change places by rounding."""
SECONDS: Final = 1.0
"""Of each timing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    holds: bool | None
    """None: a measurement, or not applicable."""
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is checked."""

    model: Path
    reference: Path
    """The same model as the CPU runs it."""
    device: Device
    context: int
    slots: int
    tokens: int
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    """Run all checks; the exit status: 0 if all hold, 1 if one does not, 2 if none could run."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_check", description=__doc__)
    parser.add_argument("--provider", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--model", type=Path, help="half precision; by default the embedded model")
    parser.add_argument("--slots", type=int, default=max(BATCHES) + 1)
    parser.add_argument("--context", type=int, default=1_024)
    parser.add_argument("--tokens", type=int, default=32, help="of each greedy text")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each timing")
    given = parser.parse_args(arguments)
    try:
        device = choose_device(given.provider, given.gpu)
        rows = list(
            check(
                Task(
                    model=given.model or _embedded(half=True),
                    reference=given.model or _embedded(half=False),
                    device=device,
                    context=given.context,
                    slots=given.slots,
                    tokens=given.tokens,
                    seconds=given.seconds,
                )
            )
        )
    except MinerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    _print(rows)
    return 0 if all(row.holds is not False for row in rows) else 1


def _embedded(*, half: bool) -> Path:
    def say(line: str) -> None:
        print(line, file=sys.stderr)

    return prepare_embedded_model(default_cache(os.environ), say, half=half).path


def check(task: Task) -> Iterator[Row]:
    """Every check in turn.

    Raises:
        MinerError: the model cannot be loaded.
    """
    gpu = _read_gpu(task.device)
    yield from _device_rows(task.device)
    asked: ProviderChoice = "cuda" if task.device.provider == CUDA else "cpu"
    started = time.perf_counter()
    runtime = _open(task, asked)
    yield Row(name="load", holds=None, detail=f"{time.perf_counter() - started:.1f} s")
    yield Row(
        name="provider",
        holds=runtime.provider == task.device.provider,
        detail=f"{runtime.device}; {runtime.slots} slots of {runtime.context} tokens",
    )
    after = _read_gpu(task.device)
    if gpu and after:
        used = (gpu.free_bytes - after.free_bytes) >> 20
        yield Row(name="memory", holds=None, detail=f"{used:,} MiB taken by model and cache")
    reference = _open(replace(task, model=task.reference), "cpu")
    yield _compare_logits(task, runtime, reference)
    yield _compare_texts(task, runtime, reference)
    yield _check_copy(runtime)
    yield _compare_repeats(runtime)
    for name, detail in time_answers(runtime, task.model):
        yield Row(name=name, holds=None, detail=detail)
    at_work = _read_gpu(task.device)
    if gpu and at_work:
        used = (gpu.free_bytes - at_work.free_bytes) >> 20
        yield Row(name="memory at work", holds=None, detail=f"{used:,} MiB")
    # Last: what others take of the device's memory is not ours.
    for name, detail in time_steps(runtime, task.model, task.seconds):
        yield Row(name=name, holds=None, detail=detail)


def _open(task: Task, provider: ProviderChoice) -> LlamaRuntime:
    return LlamaRuntime(
        task.model,
        threads=os.cpu_count() or 1,
        context=task.context,
        slots=task.slots,
        least_slots=2,
        provider=provider,
        gpu=task.device.index,
    )


def _read_gpu(device: Device) -> Any:
    return read_gpu(device.index, os.environ, load_nvml()) if device.provider == CUDA else None


def _device_rows(device: Device) -> Iterator[Row]:
    if device.provider != CUDA:
        yield Row(name="device", holds=None, detail="the CPU, by request: nothing about a GPU")
        return
    gpu = _read_gpu(device)
    yield Row(
        name="driver",
        holds=gpu is not None,
        detail=f"{gpu.name}, driver {gpu.driver}, {gpu.free_bytes >> 20:,} of "
        f"{gpu.total_bytes >> 20:,} MiB free"
        if gpu
        else "NVML does not answer: memory cannot be planned",
    )


def _compare_logits(task: Task, runtime: LlamaRuntime, reference: LlamaRuntime) -> Row:
    ids = _prompt(task, QUESTIONS[0])
    got, expected = runtime.score(ids), reference.score(ids)
    error = float(np.sqrt(np.square(got - expected).mean(axis=-1)).max())
    spread = float(expected.std(axis=-1).mean())
    return Row(
        name="logits",
        holds=error <= LOGIT_TOLERANCE * spread,
        detail=f"off by {error:.4f} (root mean square of the worst row), spread {spread:.2f}",
    )


def _compare_texts(task: Task, runtime: LlamaRuntime, reference: LlamaRuntime) -> Row:
    """Greedy texts may part where two tokens are nearly as likely; the reference says how near."""
    same, parted = 0, list[float]()
    for question in QUESTIONS:
        ids = _prompt(task, question)
        ours, theirs = (_greedy(r, ids, task.tokens) for r in (runtime, reference))
        if ours == theirs:
            same += 1
            continue
        at = next(at for at in range(task.tokens) if ours[at] != theirs[at])
        row = reference.score(ids + theirs[:at])[-1]
        parted.append(round(float(row[theirs[at]] - row[ours[at]]), 3))
    return Row(
        name="greedy texts",
        holds=all(gap < CLOSE_CALL for gap in parted),
        detail=f"{same} of {len(QUESTIONS)} equal, {task.tokens} tokens each; the others part "
        f"where the best two logits differ by {parted}",
    )


def _check_copy(runtime: LlamaRuntime) -> Row:
    ids = list(range(1, 9))
    expected = runtime.score(ids)[-1]
    last = runtime.slots - 1
    runtime.copy_slot(0, last, len(ids) - 1)
    got = runtime.step([ids[-1]], [len(ids)], first_slot=last)[0]
    error = float(np.abs(got - expected).max())
    holds = error <= LOGIT_TOLERANCE * float(expected.std())
    return Row(name="slot copies", holds=holds, detail=f"logits after a copy off by {error:.4f}")


def _compare_repeats(runtime: LlamaRuntime) -> Row:
    """The same steps again: whether they give the same bits, which is no promise of a GPU."""
    size = min(REPEATED_TOKENS, runtime.context - 1)
    off = dict[int, float]()
    for rows in (n for n in BATCHES if n <= runtime.slots):
        for slot in range(rows):
            runtime.prefill(range(1 + slot, size + 1), slot=slot, start=0)
        lengths = [size - slot + 1 for slot in range(rows)]
        steps = [runtime.step([7] * rows, lengths).copy() for _ in range(REPEATS)]
        off[rows] = max(float(np.abs(step - steps[0]).max()) for step in steps)
    told = ", ".join(f"{rows} rows {error:.4f}" for rows, error in off.items())
    return Row(name="repeats", holds=None, detail=f"logits of the same step again, off by: {told}")


def _prompt(task: Task, question: str) -> list[int]:
    tokenizer = ChatTokenizer(find_model(task.model).root)
    ids: list[int] = tokenizer.encode(tokenizer.render([Message(role="user", content=question)]))
    return ids


def _greedy(runtime: LlamaRuntime, ids: list[int], tokens: int) -> list[int]:
    drawn: list[int] = []
    logits: NDArray[np.float32] = runtime.score(ids)[-1]
    while len(drawn) < tokens:
        drawn.append(int(logits.argmax()))
        logits = runtime.step(drawn[-1:], [len(ids) + len(drawn)])[0]
    return drawn


def _print(rows: list[Row]) -> None:
    marks = {True: "ok", False: "FAILS", None: "-"}
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {marks[row.holds]:<5}  {row.detail}")


if __name__ == "__main__":
    sys.exit(main())
