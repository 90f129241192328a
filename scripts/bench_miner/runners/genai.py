"""ONNX Runtime GenAI on the very directory that the miner serves."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai as genai  # type: ignore[import-not-found]

from scripts.bench_miner.work import (
    CONTEXT,
    TEMPERATURE,
    TOP_P,
    Answer,
    Request,
    Setup,
    Stopwatch,
)


def open_runner(setup: Setup) -> AbstractContextManager[GenaiRunner]:
    """Load the model."""
    return nullcontext(GenaiRunner(setup))


class GenaiRunner:
    """One generator for each request, its rows in lockstep."""

    def __init__(self, setup: Setup) -> None:
        genai.disable_telemetry_events()
        self.version = f"onnxruntime-genai {genai.__version__} on {onnxruntime.__version__}"
        config = genai.Config(setup.model)
        options = {"intra_op_num_threads": setup.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        if setup.provider != "cpu":
            config.clear_providers()
            config.append_provider(setup.provider)
        self._model = genai.Model(config)

    def generate(self, request: Request) -> Answer:
        """See `Runner`."""
        prompts = np.array(request.prompts, np.int32)
        rows, length = prompts.shape
        generator = self._open_generator(rows, length + request.new_tokens, request)
        watch = Stopwatch()
        generator.append_tokens(prompts)
        for _ in range(request.new_tokens):
            generator.generate_next_token()
            watch.note_token()
        sequences = (generator.get_sequence(row) for row in range(rows))
        return watch.build_answer([tokens[length:].tolist() for tokens in sequences])

    def _open_generator(self, rows: int, length: int, request: Request) -> Any:
        params = genai.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=rows,
            max_length=CONTEXT,
            min_length=length,
            do_sample=request.sampled,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
        )
        return genai.Generator(self._model, params)
