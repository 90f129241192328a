"""How fast a GPU is, for `scripts/gpu_check.py`: steps beside other runtimes, and whole answers."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from miner.drawing import choose_tokens
from miner.engine import GenerationRequest, InferenceThread, LlamaEngine
from miner.models.layout import find_model
from miner.runtime import CUDA, LlamaRuntime
from miner.runtime.config import read_config
from miner.sampling import MICROS, Draw, SamplingParams
from miner.tokenizer import ChatTokenizer, Message
from scripts.bench_miner.work import TEMPERATURE, TOP_P, Request, Setup

Figure: TypeAlias = tuple[str, str]
"""What was measured, and how fast it is."""
Rates: TypeAlias = Callable[[int], str]
"""Tokens a second of steps of so many rows."""
BATCHES: Final = (1, 4, 8, 16, 32)
PROMPT_TOKENS: Final = 128
ANSWER_TOKENS: Final = 64
PROMPT: Final = "Write a story."
WARM_UP_RUNS: Final = 2
DRAWN: Final = SamplingParams(
    max_tokens=1,
    temperature_micros=round(TEMPERATURE * MICROS),
    top_p_micros=round(TOP_P * MICROS),
    seed=1,
)
WAYS: Final = (("likeliest", 0, MICROS), ("drawn", 700_000, 900_000), ("top-p 1", MICROS, MICROS))
"""How the tokens of answers are chosen: a name, temperature and top-p in millionths."""


def time_steps(runtime: LlamaRuntime, model: Path, seconds: float) -> Iterator[Figure]:
    """A prompt, and steps of several sizes after it; beside what else is installed.

    Args:
        runtime: of the model; its slots are overwritten.
        model: its files, for the others.
        seconds: of each timing.
    """
    chunk = [1 + n % 100 for n in range(min(runtime.chunk, runtime.context // 2))]
    rate = len(chunk) * _rate(lambda: runtime.prefill(chunk, slot=0, start=0), seconds)
    yield "prefill", f"{rate:,.0f} tokens/s, {len(chunk)} at once"
    prompt = chunk[:PROMPT_TOKENS]
    for slot in range(runtime.slots):
        runtime.prefill(prompt, slot=slot, start=0)
    others = [rates for rates in (_torch(runtime, model, seconds), _genai(runtime, model)) if rates]
    for rows in (n for n in BATCHES if n <= runtime.slots):
        draws = {row: Draw(params=DRAWN, key=bytes([row]) * 32, step=0) for row in range(rows)}

        def step(chosen: Mapping[int, Draw], rows: int = rows) -> None:
            lengths = [len(prompt) + 1] * rows
            choose_tokens(runtime.look([5] * rows, lengths, [TEMPERATURE] * rows), chosen)

        plain, drawn = (
            rows * _rate(lambda chosen=chosen: step(chosen), seconds)  # type: ignore[misc]
            for chosen in ({}, draws)
        )
        beside = "".join(f"; {rates(rows)}" for rates in others)
        yield f"decode, {rows} rows", f"{plain:,.0f} tokens/s, drawn {drawn:,.0f}{beside}"


def time_answers(runtime: LlamaRuntime, model: Path) -> Iterator[Figure]:
    """Whole answers to several prompts at once: read, computed, drawn and put into words."""
    with InferenceThread() as inference:
        engine = LlamaEngine(
            runtime,
            ChatTokenizer(find_model(model).root),
            model_digest="0" * 64,
            inference=inference,
        )
        engine.warm_up()
        for answers in sorted({1, engine.slots, 3 * engine.slots}):
            rates = [
                f"{way} {_time_burst(engine, answers, temperature, top_p, runtime.context):,.0f}"
                for way, temperature, top_p in WAYS
            ]
            yield f"{answers} answers", f"{', '.join(rates)} tokens/s"


def _time_burst(
    engine: LlamaEngine, answers: int, temperature_micros: int, top_p_micros: int, context: int
) -> float:
    """Tokens a second from the first prompt to the last word."""
    began = time.perf_counter()
    generations = [
        engine.submit(
            GenerationRequest(
                job_id=f"{number} of {answers}",
                messages=(Message(role="user", content=PROMPT),),
                params=SamplingParams(
                    max_tokens=min(ANSWER_TOKENS, context // 4),
                    temperature_micros=temperature_micros,
                    top_p_micros=top_p_micros,
                    seed=number,
                ),
                owner=f"{temperature_micros} {top_p_micros} {number} of {answers}",
            ),
            on_text=lambda _: None,
        )
        for number in range(answers)
    ]
    tokens = sum(len(generation.future.result().token_ids) for generation in generations)
    return tokens / (time.perf_counter() - began)


def _torch(runtime: LlamaRuntime, model: Path, seconds: float) -> Rates | None:
    """A plain decoder of the same shape in PyTorch; None without PyTorch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    decoder = importlib.import_module("scripts.torch_decoder")
    device, location = runtime.device, find_model(model)
    place = f"cuda:{device.index}" if device.provider == CUDA else "cpu"
    config = read_config(location)

    def rates(rows: int) -> str:
        step = decoder.build(torch, location.root, config, rows, place)
        return f"PyTorch {rows * _rate(step, seconds):,.0f}"

    return rates


def _genai(runtime: LlamaRuntime, model: Path) -> Rates | None:
    """ONNX Runtime GenAI on the same files; None without it."""
    try:
        genai = importlib.import_module("scripts.bench_miner.runners.genai")
    except ImportError:
        return None
    setup = Setup(
        model=str(find_model(model).root),
        threads=os.cpu_count() or 1,
        provider=runtime.device.name,
    )
    runner = genai.GenaiRunner(setup)
    prompt = [1 + n % 100 for n in range(PROMPT_TOKENS)]

    def rates(rows: int) -> str:
        try:
            plain, drawn = (
                runner.generate(
                    Request(prompts=[prompt] * rows, new_tokens=ANSWER_TOKENS, sampled=sampled)
                )
                for sampled in (False, True)
            )
        except RuntimeError as error:  # of a model whose context is too short for it, say
            return f"GenAI: {error}"
        plain_s, drawn_s = (statistics.median(answer.steps_s) for answer in (plain, drawn))
        return f"GenAI {rows / plain_s:,.0f}, drawn {rows / drawn_s:,.0f}"

    return rates


def _rate(run: Callable[[], object], seconds: float) -> float:
    """Runs a second."""
    for _ in range(WARM_UP_RUNS):
        run()
    started, runs = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds or not runs:
        run()
        runs += 1
    return runs / taken
