"""How far each token of an answer is from the one that the auditor's own logits choose.

The auditor's logits differ in their last digits from the provider's. So a token counts as wrong by
its *gap*: by how much the best score beats its own, in logits, whatever the temperature. An honest
gap is at most twice the error of a logit. The nucleus has two edges: the best score is sought
inside a narrower one, and a token is refused only outside a wider one. What is almost as likely as
the last or the first beyond an edge may change places with it, however much it weighs, so it counts
as neither surely inside nor surely outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ledger.replay import EDGE_TIE_MICROS, NUCLEUS_MARGIN_MICROS
from miner.rows import WholeRow
from miner.sampling import MICROS, SamplingParams, find_winner, gumbel_noise

CUTS: Final = (1e-2, 1e-4, 1e-6, 0.0)
"""Shares of the largest probability: a nucleus mostly needs nothing below the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGaps:
    """One entry a token."""

    gaps: NDArray[np.float64]
    """In logits, 0 and more; infinite for a token that the sampler could not have drawn."""
    exact: NDArray[np.bool_]
    """Whether the auditor's logits choose this very token."""


def measure_gaps(
    logits: NDArray[Any],
    token_ids: NDArray[np.int64],
    *,
    params: SamplingParams,
    key: bytes,
    first_step: int,
) -> TokenGaps:
    """Compare tokens with the rows of logits that chose them.

    Args:
        logits: shape (tokens, vocabulary).
        token_ids: below the vocabulary's size.
        params: of the answer.
        key: of its noise.
        first_step: the step of the first row.
    """
    if params.temperature_micros == 0:
        claimed = logits[np.arange(token_ids.size), token_ids].astype(np.float64)
        gaps = logits.max(axis=1).astype(np.float64) - claimed
        return TokenGaps(gaps=gaps, exact=logits.argmax(axis=1) == token_ids)
    rows = [
        _measure_row(row, int(token), params, key, first_step + at)
        for at, (row, token) in enumerate(zip(logits, token_ids, strict=True))
    ]
    return TokenGaps(
        gaps=np.array([gap for gap, _ in rows], np.float64),
        exact=np.array([is_exact for _, is_exact in rows], np.bool_),
    )


def _measure_row(
    logits: NDArray[Any], token: int, params: SamplingParams, key: bytes, step: int
) -> tuple[float, bool]:
    temperature = params.temperature_micros / MICROS
    if params.top_p_micros >= MICROS:
        chosen, best = find_winner(WholeRow(logits), temperature, key, step)
        noise = gumbel_noise(key, step, np.array([token]))[0]
        claimed = float(logits[token]) / temperature + noise
        return max(0.0, float(best - claimed)) * temperature, chosen == token
    scaled = logits.astype(np.float64) / temperature
    nuclei = _find_nuclei(scaled, params.top_p_micros, tie=EDGE_TIE_MICROS / MICROS / temperature)
    if scaled[token] < nuclei.floor:
        return np.inf, False
    drawn = np.append(nuclei.ids, token)
    scores = scaled[drawn] + gumbel_noise(key, step, drawn)
    best = scores[: nuclei.sure].max(initial=-np.inf)
    inside = scores[:-1]
    chosen = int(nuclei.ids[inside == inside.max()].min())
    return max(0.0, float(best - scores[-1])) * temperature, chosen == token


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nuclei:
    """What an auditor takes a provider's nucleus to be."""

    ids: NDArray[np.intp]
    """The auditor's own, by falling score."""
    sure: int
    """How many of these every honest provider has."""
    floor: float
    """The lowest score that an honest provider's may hold."""


def _find_nuclei(scaled: NDArray[np.float64], top_p_micros: int, *, tie: float) -> _Nuclei:
    ids, sizes = _order(scaled, top_p_micros)
    narrow, own, wide = (int(size) for size in np.maximum(sizes, 1))
    beyond = scaled[ids[narrow]] if narrow < ids.size else -np.inf
    sure = int((scaled[ids[:narrow]] > beyond + tie).sum())
    return _Nuclei(ids=ids[:own], sure=sure, floor=float(scaled[ids[wide - 1]]) - tie)


def _order(
    scaled: NDArray[np.float64], top_p_micros: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Ids by falling score, and how many are in the narrower, the exact and the wider nucleus.

    There are more ids than in the wider one, unless that holds them all.
    """
    top = scaled.max()
    weights = np.exp((scaled - top).astype(np.float32))
    total = weights.sum(dtype=np.float64)
    edges = top_p_micros + np.array([-NUCLEUS_MARGIN_MICROS, 0, NUCLEUS_MARGIN_MICROS])
    wanted = total * (edges / MICROS)
    for cut in CUTS:
        ids = np.flatnonzero(weights >= cut)
        ids = ids[np.argsort(-scaled[ids], kind="stable")]
        before = np.concatenate([[0.0], np.cumsum(np.exp(scaled[ids] - top))[:-1]])
        if before[-1] > wanted[-1]:
            break
    return ids, np.searchsorted(before, wanted)
