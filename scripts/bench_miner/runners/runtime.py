"""The miner's own runtime, stepped as the engine steps it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from miner.runtime import PREFILL_CHUNK, LlamaRuntime
from miner.sampling import MICROS, SamplingParams, choose_token
from scripts.bench_miner.work import (
    CONTEXT,
    MAX_ROWS,
    TEMPERATURE,
    TOP_P,
    Answer,
    Request,
    Setup,
    Stopwatch,
    take_likeliest,
)

PARAMS: Final = SamplingParams(
    max_tokens=CONTEXT,
    temperature_micros=round(TEMPERATURE * MICROS),
    top_p_micros=round(TOP_P * MICROS),
    seed=1,
)


def open_runner(setup: Setup) -> AbstractContextManager[RuntimeRunner]:
    """Load the model."""
    return nullcontext(RuntimeRunner(setup))


class RuntimeRunner:
    """Prompts row by row into the cache, then all rows together."""

    def __init__(self, setup: Setup) -> None:
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._runtime = LlamaRuntime(
            Path(setup.model),
            threads=setup.threads,
            context=CONTEXT,
            slots=MAX_ROWS,
            provider="cpu",
        )

    def generate(self, request: Request) -> Answer:
        """See `Runner`."""
        choose = self._draw if request.sampled else _likeliest
        watch = Stopwatch()
        for slot, prompt in enumerate(request.prompts):
            self._prefill(prompt[:-1], slot)
        length = len(request.prompts[0])
        tokens = [prompt[-1] for prompt in request.prompts]
        drawn = []
        for step in range(request.new_tokens):
            tokens = choose(self._step(tokens, length + step), step)
            drawn.append(tokens)
            watch.note_token()
        return watch.build_answer(np.transpose(drawn).tolist())

    def _prefill(self, prompt: Sequence[int], slot: int) -> None:
        for start in range(0, len(prompt), PREFILL_CHUNK):
            self._runtime.prefill(prompt[start : start + PREFILL_CHUNK], slot=slot, start=start)

    def _step(self, tokens: list[int], length: int) -> NDArray[np.float32]:
        return self._runtime.step(tokens, [length] * len(tokens))

    def _draw(self, logits: NDArray[np.float32], step: int) -> list[int]:
        keys = (bytes([row]) * 32 for row in range(len(logits)))
        return [
            choose_token(row, params=PARAMS, key=key, step=step)
            for row, key in zip(logits, keys, strict=True)
        ]


def _likeliest(logits: NDArray[np.float32], _step: int) -> list[int]:
    return take_likeliest(logits)
