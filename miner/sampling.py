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
from miner.rows import Row, WholeRow

SAMPLER: Final = "aitbc-gumbel-v1"
DOMAIN: Final = b"aitbc/gumbel/v1\n"
MICROS: Final = 1_000_000
CANDIDATES: Final = (2**-7, 2**-14, 2**-28, 0.0)
"""The nucleus is looked for among ids that are at least so likely by the likeliest: mostly found
at once, and cheaper than putting the whole vocabulary in order."""

DEPTHS: Final = (4, 7, 10, 13, 17, 22, 28)
"""The same as powers of two, in finer steps for a search that puts only the last of them in order.
"""
FEW_IDS: Final = 128
"""So many blocks of the noise cost less than all of it for a usual vocabulary."""
DOUBT: Final = 1e-4
"""Single precision adds the weights of a vocabulary up to about 2e-5."""
NEAR: Final = 5.0
"""An id so far below the top, in units of noise, is drawn once in 150 times by itself."""
ROUNDING: Final = 1e-3
"""More than the bound between near and far may be off in single precision."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What decides which token is drawn from a row of logits."""

    params: SamplingParams
    key: bytes
    """Of the answer's noise."""
    step: int


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
    return as_noise(draw_words(key, step, token_ids))


def draw_words(key: bytes, step: int, token_ids: NDArray[np.intp]) -> NDArray[np.uint32]:
    """What the noise of these token ids is made of."""
    if token_ids.size <= FEW_IDS:
        stream = _stream(key, step)
        # A block of the stream for each id: far less than all of it up to the highest.
        words = b"".join([stream.digest(length=4, seek=4 * id_) for id_ in token_ids.tolist()])
        return np.frombuffer(words, "<u4")
    return _draw_all(key, step, int(token_ids.max()) + 1)[token_ids]


def as_noise(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Gumbel noise of words that are equally likely."""
    return -np.log(-np.log((words.astype(np.float64) + 0.5) / 2.0**32))


def find_noisy(
    key: bytes, step: int, vocabulary: int, least: float
) -> tuple[NDArray[np.intp], NDArray[np.uint32]]:
    """Ids, rising, whose noise may be `least` or more, perhaps a trifle less, and their words."""
    words = _draw_all(key, step, vocabulary)
    ids = np.flatnonzero(words >= least_word(least))
    return ids, words[ids]


def least_word(least: float) -> int:
    """A word below all that give so much noise, or a trifle more."""
    return max(math.floor(math.exp(-math.exp(-least)) * 2.0**32) - 1, 0)


def _draw_all(key: bytes, step: int, size: int) -> NDArray[np.uint32]:
    return np.frombuffer(_stream(key, step).digest(length=4 * size), "<u4")


def _stream(key: bytes, step: int) -> blake3:
    return blake3(struct.pack("<Q", step), key=key)


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


def choose_token(
    logits: NDArray[Any] | Row, *, params: SamplingParams, key: bytes, step: int
) -> int:
    """The id drawn from one row of logits."""
    row = WholeRow(logits) if isinstance(logits, np.ndarray) else logits
    if params.temperature_micros == 0:
        return row.find_likeliest()
    temperature = params.temperature_micros / MICROS
    if params.top_p_micros >= MICROS:
        return find_winner(row, temperature, key, step)[0]
    found = _quick_nucleus(row, temperature, params.top_p_micros)
    if found is None:
        found = nucleus(row.read_all() / temperature, params.top_p_micros)
    ids = np.sort(found)
    scores = row.read(ids) / temperature + gumbel_noise(key, step, ids)
    return int(ids[scores.argmax()])


def _quick_nucleus(row: Row, temperature: float, top_p_micros: int) -> NDArray[np.intp] | None:
    """As `nucleus`, for a small part of its time; None where that would leave a doubt.

    The sum of all weights is taken in single precision. Where the nucleus ends is decided by it
    only if it would have to be wrong by far more than it can be for another end.
    """
    wanted = row.add_up(temperature) * (top_p_micros / MICROS)
    for doublings in DEPTHS:
        ids = row.find_above(row.top - doublings * math.log(2) * temperature)
        scaled = row.read(ids) / temperature
        weights = np.exp(scaled - row.top / temperature)
        if weights.sum() <= wanted * (1 + DOUBT):
            continue
        order = np.argsort(-scaled, kind="stable")
        before = np.cumsum(weights[order])
        size = int(np.searchsorted(before, wanted)) + 1
        is_clear = np.abs(before[max(size - 2, 0) : size] - wanted).min() > DOUBT * wanted
        return ids[order[:size]] if is_clear else None
    return None


def find_winner(row: Row, temperature: float, key: bytes, step: int) -> tuple[int, float]:
    """The id with the largest score of the whole vocabulary, the lowest of several, and its score.

    Two logarithms for each of 50,000 ids cost as much as a layer of a small model. How much noise
    an id far below the top would need to win is known from those near it, and few have so much.
    """
    near = row.find_above(row.top - NEAR * temperature)
    scores = row.read(near) / temperature + gumbel_noise(key, step, near)
    needed = float(scores.max()) - (row.top / temperature - NEAR) - ROUNDING
    far, words = find_noisy(key, step, row.size, needed)
    ids = np.concatenate([near, far])
    scores = np.concatenate([scores, row.read(far) / temperature + as_noise(words)])
    best = scores.max()
    return int(ids[scores == best].min()), float(best)
