"""Tokens per second of the embedded model on the processor, and what drawing a token costs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import numpy as np

from miner.models.embedded import default_cache, prepare_embedded_model
from miner.runtime import PREFILL_CHUNK, LlamaRuntime
from miner.sampling import SamplingParams, choose_token
from scripts.bench_figures.measure import Plan, Row, Work, measure_rates

CONTEXT = 512
DECODED = 16
"""Tokens of one measured run, drawn after a prompt of one prefill chunk."""
THREADS = (1, 2)
PARAMS = SamplingParams(max_tokens=128, temperature_micros=700_000, top_p_micros=900_000, seed=1)


def measure_model(plan: Plan) -> Iterator[Row]:
    """One sequence at a time, as the miner runs a job.

    A decoded token reads every weight once, so the reference is how often one core can read as
    many bytes from memory.
    """
    model = prepare_embedded_model(
        default_cache(os.environ), lambda line: print(line, file=sys.stderr)
    )
    size_bytes = sum(file.stat().st_size for file in model.path.glob("*.onnx*"))
    runtimes = {
        threads: LlamaRuntime(model.path, threads=threads, context=CONTEXT, provider="cpu")
        for threads in THREADS
    }
    works: dict[str, Work] = {"read": _read_memory(size_bytes), "sampler": _sample(runtimes[1])}
    for threads, runtime in runtimes.items():
        works[f"prefill {threads}"] = _prefill(runtime)
        works[f"decode {threads}"] = _decode(runtime)
    rates = measure_rates(works, rounds=plan.rounds, slice_s=plan.slice_s)
    decode = rates["decode 1"].per_second
    for threads in THREADS:
        for kind, reference, reference_value in (
            ("decode", "reads of all weights", rates["read"].per_second),
            ("prefill", f"decode, {threads} threads", rates[f"decode {threads}"].per_second),
        ):
            rate = rates[f"{kind} {threads}"]
            yield Row(
                figure=f"{model.name} {kind}, {threads} threads",
                value=rate.per_second,
                unit="tokens/s",
                reference=reference,
                reference_value=reference_value,
                cpu_micros=rate.cpu_micros,
            )
    yield Row(
        figure="drawing a token (aitbc-gumbel-v1)",
        value=1000 / rates["sampler"].per_second,
        unit="ms",
        reference="decode of it, 1 thread",
        reference_value=1000 / decode,
        goal="<= 0.5 ms",
        cpu_micros=rates["sampler"].cpu_micros,
    )


def _read_memory(size_bytes: int) -> Work:
    weights = np.ones(size_bytes // 8, np.uint64)

    def read() -> int:
        weights.sum()
        return 1

    return read


def _prefill(runtime: LlamaRuntime) -> Work:
    prompt = list(range(PREFILL_CHUNK))

    def prefill() -> int:
        runtime.prefill(prompt, slot=0, start=0)
        return len(prompt)

    return prefill


def _decode(runtime: LlamaRuntime) -> Work:
    def decode() -> int:
        for length in range(PREFILL_CHUNK + 1, PREFILL_CHUNK + DECODED + 1):
            runtime.step([length], [length])
        return DECODED

    return decode


def _sample(runtime: LlamaRuntime) -> Work:
    logits = runtime.step([1], [1])[0]
    key = bytes(32)

    def sample() -> int:
        for step in range(DECODED):
            choose_token(logits, params=PARAMS, key=key, step=step)
        return DECODED

    return sample
