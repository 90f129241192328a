"""docs/sampling.md once more, in plain Python, written from the text: the source of its vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from blake3 import blake3

JOB_ID = "job_01JD0000000000000000000000"
MODEL_DIGEST = "ab" * 32
PROMPT = [1, 520, 9531]
MAX_TOKENS = 16
STEPS = 16
LOGITS = [
    [2.0, 1.5, -0.5, 3.25, 0.0, 3.25, -4.0, 1.0, 2.75, 0.125],
    [0.0] * 10,
    [10.0, 9.5, 9.0, 8.5, 8.0, 7.5, 7.0, 6.5, 6.0, 5.5],
]
CASES = [
    (700_000, 900_000, 1_234_567),
    (1_000_000, 1_000_000, 0),
    (2_000_000, 500_000, 2**53 - 1),
    (0, 900_000, 5),
    (50_000, 1, 9),
]


def key_of(temperature_micros: int, top_p_micros: int, seed: int) -> bytes:
    description = json.dumps(
        {
            "job_id": JOB_ID,
            "max_tokens": MAX_TOKENS,
            "model_digest": MODEL_DIGEST,
            "prompt_token_ids": PROMPT,
            "seed": seed,
            "temperature_micros": temperature_micros,
            "top_p_micros": top_p_micros,
        },
        separators=(",", ":"),
    )
    return blake3(b"aitbc/gumbel/v1\n" + description.encode()).digest()


def noise_of(key: bytes, step: int, size: int) -> list[float]:
    stream = blake3(step.to_bytes(8, "little"), key=key).digest(length=4 * size)
    numbers = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(size)]
    return [-math.log(-math.log((number + 0.5) / 2**32)) for number in numbers]


def token_of(
    logits: Sequence[float], key: bytes, step: int, *, temperature_micros: int, top_p_micros: int
) -> int:
    ids = range(len(logits))
    if temperature_micros == 0:
        return max(ids, key=lambda i: (logits[i], -i))
    scaled = [logit / (temperature_micros / 1e6) for logit in logits]
    largest = max(scaled)
    weights = [math.exp(s - largest) for s in scaled]
    nucleus: list[int] = []
    for i in sorted(ids, key=lambda i: (-scaled[i], i)):
        before = math.fsum(weights[j] for j in nucleus)
        if nucleus and top_p_micros < 10**6 and before >= math.fsum(weights) * top_p_micros / 1e6:
            break
        nucleus.append(i)
    noise = noise_of(key, step, len(logits))
    return max(nucleus, key=lambda i: (scaled[i] + noise[i], -i))


def build_sampling() -> dict[str, object]:
    """The contents of tests/vectors/sampling.json."""
    cases = []
    for temperature_micros, top_p_micros, seed in CASES:
        key = key_of(temperature_micros, top_p_micros, seed)
        how = {"temperature_micros": temperature_micros, "top_p_micros": top_p_micros}
        cases.append(
            {
                **how,
                "seed": seed,
                "key": key.hex(),
                "noise": [round(value, 9) for value in noise_of(key, 0, 3)],
                "tokens": [
                    [token_of(row, key, step, **how) for step in range(STEPS)] for row in LOGITS
                ],
            }
        )
    return {
        "sampler": "aitbc-gumbel-v1",
        "job_id": JOB_ID,
        "model_digest": MODEL_DIGEST,
        "prompt_token_ids": PROMPT,
        "max_tokens": MAX_TOKENS,
        "logits": LOGITS,
        "cases": cases,
    }
