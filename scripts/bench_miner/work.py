"""What one runner is asked and what it answers, as JSON lines between two processes."""

from __future__ import annotations

import dataclasses
import json
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

CONTEXT: Final = 576
"""Tokens that a row's cache holds, for every runner: the longest prompt and its answer."""
MAX_ROWS: Final = 16
TEMPERATURE: Final = 0.7
TOP_P: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Answer these prompts together, as rows of one batch."""

    prompts: Sequence[Sequence[int]]
    """Token ids; all of one length, so that no runner computes padding."""
    new_tokens: int
    """Of each row; the end token ends nothing."""
    sampled: bool
    """Draw with TEMPERATURE and TOP_P instead of taking the likeliest token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What it took, by the clock and of the processor, the time of all threads together."""

    first_s: float
    """From the prompts to the first token of every row; to the last one if there are no steps."""
    first_cpu_s: float
    steps_s: Sequence[float]
    """Each later token of all rows."""
    steps_cpu_s: Sequence[float]
    token_ids: Sequence[Sequence[int]]
    peak_bytes: int = 0
    """The most memory the process has held so far."""

    @property
    def whole_s(self) -> float:
        """From the prompts to the last token of every row."""
        return self.first_s + sum(self.steps_s)

    @property
    def whole_cpu_s(self) -> float:
        """The same of the processor."""
        return self.first_cpu_s + sum(self.steps_cpu_s)


class Stopwatch:
    """Notes the time of each token; starts running when made."""

    def __init__(self) -> None:
        self._clock = [time.perf_counter()]
        self._cpu = [time.process_time()]

    def note_token(self) -> None:
        """A token of every row is there."""
        self._clock.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def build_answer(self, token_ids: Sequence[Sequence[int]]) -> Answer:
        """What was noted, beside the tokens themselves, row by row."""
        first_s, *steps_s = map(operator.sub, self._clock[1:], self._clock)
        first_cpu_s, *steps_cpu_s = map(operator.sub, self._cpu[1:], self._cpu)
        return Answer(
            first_s=first_s,
            first_cpu_s=first_cpu_s,
            steps_s=steps_s,
            steps_cpu_s=steps_cpu_s,
            token_ids=token_ids,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a runner is opened with."""

    model: str
    """ONNX directory or GGUF file."""
    threads: int
    provider: str = "cpu"
    """Or "cuda"."""


class Runner(Protocol):
    """One way to run the model."""

    version: str
    """What runs, for the report."""

    def generate(self, request: Request) -> Answer:
        """Do the work of a request and time it."""


def take_likeliest(logits: NDArray[np.float32]) -> list[int]:
    """The token of each row, for runners that leave the choice to their caller."""
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def dump(message: Request | Answer | Setup) -> str:
    """One line of JSON."""
    return json.dumps(dataclasses.asdict(message))
