"""The miner's engine: prompts are submitted as jobs' are, and read, answered and ended in turns."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import onnxruntime

from miner.engine import Generation, GenerationRequest, InferenceThread, LlamaEngine
from miner.runtime import LlamaRuntime
from miner.sampling import MICROS, SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from scripts.bench_miner.work import (
    CONTEXT,
    MAX_ROWS,
    TEMPERATURE,
    TOP_P,
    Answer,
    Request,
    Setup,
)


class GivenTokens(ChatTokenizer):
    """Takes the tokens of a prompt from its text, so that all runners read the same ones."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids."""
        ids: list[int] = json.loads(messages[0].content)
        return ids


@contextmanager
def open_runner(setup: Setup) -> Iterator[EngineRunner]:
    """Load the model."""
    with InferenceThread() as inference:
        yield EngineRunner(setup, inference)


class EngineRunner:
    """All prompts of a request are submitted at once; only the whole is timed."""

    def __init__(self, setup: Setup, inference: InferenceThread) -> None:
        self.version = f"onnxruntime {onnxruntime.__version__}"
        path = Path(setup.model)
        runtime = LlamaRuntime(
            path,
            threads=setup.threads,
            context=CONTEXT,
            slots=MAX_ROWS + 1,
            provider="cpu",
        )
        runtime.config = dataclasses.replace(runtime.config, eos_token_ids=frozenset())
        self._engine = LlamaEngine(
            runtime, GivenTokens(path), model_digest="0" * 64, inference=inference
        )
        self._owners = count()

    def generate(self, request: Request) -> Answer:
        """See `Runner`."""
        owner = str(next(self._owners))  # whose prompts nobody has sent before
        began, cpu_began = time.perf_counter(), time.process_time()
        generations = [self._submit(request, prompt, owner) for prompt in request.prompts]
        completions = [generation.future.result() for generation in generations]
        return Answer(
            first_s=time.perf_counter() - began,
            first_cpu_s=time.process_time() - cpu_began,
            steps_s=[],
            steps_cpu_s=[],
            token_ids=[completion.token_ids for completion in completions],
        )

    def _submit(self, request: Request, prompt: Sequence[int], owner: str) -> Generation:
        asked = GenerationRequest(
            job_id=owner,
            messages=(Message(role="user", content=json.dumps(prompt)),),
            params=SamplingParams(
                max_tokens=request.new_tokens,
                temperature_micros=round(TEMPERATURE * MICROS) if request.sampled else 0,
                top_p_micros=round(TOP_P * MICROS),
                seed=1,
            ),
            owner=owner,
        )
        return self._engine.submit(asked, on_text=lambda _: None)
