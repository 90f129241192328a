r"""Sampler `aitbc-gumbel-v1`: random choice that anybody with the seed can repeat.

Adding Gumbel noise to logits and taking the largest draws from exactly the softmax distribution.
Here the noise is a BLAKE3 stream keyed by the job, the model, the prompt and the seed that the
coordinator drew, so a miner has nothing left to choose. Normative text: docs/sampling.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from ledger.encoding import encode

SAMPLER: Final = "aitbc-gumbel-v1"
DOMAIN: Final = b"aitbc/gumbel/v1\n"
MICROS: Final = 1_000_000
CANDIDATES: Final = (2**-7, 2**-14, 2**-28, 0.0)
"""The nucleus is looked for among ids that are at least so likely by the likeliest: mostly found
at once, and cheaper than putting the whole vocabulary in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one answer is drawn."""

    max_tokens: int
    temperature_micros: int
    """0 takes the most likely token."""
    top_p_micros: int
    """1 to 1,000,000."""
    seed: int
    """0 to 2^53 - 1."""


def build_key(
    *, job_id: str, model_digest: str, prompt_token_ids: Sequence[int], params: SamplingParams
) -> bytes:
    """The 32-byte key of all noise of one answer."""
    description = {
        "job_id": job_id,
        "max_tokens": params.max_tokens,
        "model_digest": model_digest,
        "prompt_token_ids": list(prompt_token_ids),
        "seed": params.seed,
        "temperature_micros": params.temperature_micros,
        "top_p_micros": params.top_p_micros,
    }
    return blake3(DOMAIN + encode(description)).digest()


def gumbel_noise(key: bytes, step: int, token_ids: NDArray[np.intp]) -> NDArray[np.float64]:
    """Noise of these token ids at one step (0 is the first token of the answer)."""
    drawn = _draw(key, step, int(token_ids.max()) + 1)[token_ids].astype(np.float64)
    return -np.log(-np.log((drawn + 0.5) / 2.0**32))


def noisy_ids(key: bytes, step: int, vocabulary: int, *, least: float) -> NDArray[np.intp]:
    """Ids whose noise at one step may be `least` or more; perhaps some with a trifle less."""
    lowest = math.floor(math.exp(-math.exp(-least)) * 2.0**32) - 1
    return np.flatnonzero(_draw(key, step, vocabulary) >= max(lowest, 0))


def _draw(key: bytes, step: int, size: int) -> NDArray[np.uint32]:
    stream = blake3(struct.pack("<Q", step), key=key).digest(length=4 * size)
    return np.frombuffer(stream, "<u4")


def nucleus(scaled: NDArray[np.float64], top_p_micros: int) -> NDArray[np.intp]:
    """The likeliest ids that together reach top-p, likeliest first, lower id first on ties.

    An id belongs if the probabilities of those before it sum to less than top-p.
    """
    if top_p_micros >= MICROS:
        return np.arange(scaled.size)
    weights = np.exp(scaled - scaled.max())
    wanted = weights.sum() * (top_p_micros / MICROS)
    ids, size = np.empty(0, np.intp), 0
    for share in CANDIDATES:
        ids = np.flatnonzero(weights >= share)
        ids = ids[np.argsort(-scaled[ids], kind="stable")]
        before = np.concatenate([[0.0], np.cumsum(weights[ids])[:-1]])
        size = int(np.searchsorted(before, wanted))
        if size < ids.size:
            break
    return ids[: max(size, 1)]


def choose_token(logits: NDArray[Any], *, params: SamplingParams, key: bytes, step: int) -> int:
    """The id drawn from one row of logits."""
    if params.temperature_micros == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / (params.temperature_micros / MICROS)
    ids = np.sort(nucleus(scaled, params.top_p_micros))
    scores = scaled[ids] + gumbel_noise(key, step, ids)
    return int(ids[scores.argmax()])
