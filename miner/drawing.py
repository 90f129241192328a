"""Tokens for the rows of one step: what `choose_token` says, for many rows at once.

Drawing from one row is some twenty small operations on arrays, each of which takes longer to begin
than to do. On a CPU that is little beside a step. Beside a GPU's it is most of the time, so there
the nuclei of all rows are found and drawn from together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from miner.ahead import Ahead
from miner.rows import PeakedRows, Rows
from miner.sampling import (
    DEPTHS,
    DOUBT,
    MICROS,
    NEAR,
    ROUNDING,
    Draw,
    as_noise,
    choose_token,
    draw_words,
)

NOTHING_AHEAD: Final = Ahead()


def choose_tokens(
    rows: Rows, draws: Mapping[int, Draw], ahead: Ahead = NOTHING_AHEAD
) -> dict[int, int | None]:
    """The ids drawn from some rows, by their index; None for a row that is not made of numbers.

    Args:
        rows: of a step.
        draws: what decides, by the index of the row.
        ahead: noise of these very draws that was looked for already.
    """
    chosen: dict[int, int | None] = {}
    if isinstance(rows, PeakedRows):
        drawn = {
            at: draw
            for at, draw in draws.items()
            if draw.params.temperature_micros and rows.are_finite[at]
        }
        cut = {at for at, draw in drawn.items() if draw.params.top_p_micros < MICROS}
        chosen |= _choose_from_nuclei(rows, {at: drawn[at] for at in cut})
        chosen |= _choose_from_all(rows, {at: drawn[at] for at in drawn.keys() - cut}, ahead)
    for at, draw in draws.items():
        if at not in chosen:
            row = rows[at]
            chosen[at] = (
                choose_token(row, params=draw.params, key=draw.key, step=draw.step)
                if row.is_finite()
                else None
            )
    return chosen


def _choose_from_nuclei(rows: PeakedRows, draws: Mapping[int, Draw]) -> dict[int, int]:
    """As `choose_token`, but for rows that leave a doubt about where their nucleus ends."""
    left = np.array(list(draws), np.intp)
    chosen: dict[int, int] = {}
    for doublings in DEPTHS:
        if not left.size:
            break
        temperatures, tops = rows.temperatures[left], rows.tops[left]
        of, ids, logits = rows.find_above(left, tops - doublings * math.log(2) * temperatures)
        scaled = logits / temperatures[of]
        weights = np.exp(scaled - (tops / temperatures)[of])
        top_ps = np.array([draws[at].params.top_p_micros for at in left.tolist()]) / MICROS
        wanted = rows.totals[left] * top_ps
        enough = np.bincount(of, weights, left.size) > wanted * (1 + DOUBT)
        if not enough.any():
            continue
        some = enough[of]
        places = (np.cumsum(enough) - 1)[of[some]]
        nuclei = _Candidates(places, ids[some], scaled[some], weights[some])
        reached = left[enough].tolist()
        tokens = nuclei.draw(wanted[enough], [draws[at] for at in reached])
        chosen |= {
            at: token for at, token in zip(reached, tokens, strict=True) if token is not None
        }
        left = left[~enough]
    return chosen


def _choose_from_all(rows: PeakedRows, draws: Mapping[int, Draw], ahead: Ahead) -> dict[int, int]:
    """As `find_winner`."""
    places = np.array(list(draws), np.intp)
    if not places.size:
        return {}
    temperatures, tops = rows.temperatures[places], rows.tops[places]
    of, ids, logits = rows.find_above(places, tops - NEAR * temperatures)
    starts = np.searchsorted(of, np.arange(places.size))
    words = [
        draw_words(draw.key, draw.step, near)
        for draw, near in zip(draws.values(), np.split(ids, starts[1:]), strict=True)
    ]
    scores = logits / temperatures[of] + as_noise(np.concatenate(words))
    needed = np.maximum.reduceat(scores, starts) - (tops / temperatures - NEAR) - ROUNDING
    others = [
        ahead.find(at, draw, rows.logits.shape[1], least)
        for (at, draw), least in zip(draws.items(), needed.tolist(), strict=True)
    ]
    of_others = np.repeat(np.arange(places.size), [far.size for far, _ in others])
    far = np.concatenate([ids for ids, _ in others])
    logits = rows.logits[places[of_others], far].astype(np.float64)
    far_scores = logits / temperatures[of_others] + as_noise(np.concatenate([w for _, w in others]))
    of, ids = np.concatenate([of, of_others]), np.concatenate([ids, far])
    best = np.lexsort((ids, -np.concatenate([scores, far_scores]), of))
    winners = ids[best[np.searchsorted(of[best], np.arange(places.size))]]
    return dict(zip(draws, winners.tolist(), strict=True))


class _Candidates:
    """Ids that hold the nuclei of rows, row after row, likeliest first, lower id first on ties."""

    def __init__(
        self,
        of: NDArray[np.intp],
        ids: NDArray[np.intp],
        scaled: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        """Given row after row, ids rising: whose each is, its score without noise, its weight."""
        order = np.lexsort((-scaled, of))
        self._of, self._ids = of[order], ids[order]
        self._scaled, self._weights = scaled[order], weights[order]

    def draw(self, wanted: NDArray[np.float64], draws: Sequence[Draw]) -> list[int | None]:
        """A token of each row; None where it is not clear how far its nucleus reaches.

        Args:
            wanted: the weight that a nucleus reaches, of each row.
            draws: of each row.
        """
        of = self._of
        starts = np.searchsorted(of, np.arange(len(draws)))
        sums = np.cumsum(self._weights)
        sums -= (sums - self._weights)[starts][of]
        sizes = np.bincount(of, sums < wanted[of], len(draws)).astype(np.intp) + 1
        places = np.arange(of.size) - starts[of]
        at_edge = (places >= sizes[of] - 2) & (places < sizes[of])
        is_close = np.abs(sums - wanted[of]) <= DOUBT * wanted[of]
        is_clear = np.bincount(of, at_edge & is_close, len(draws)) == 0
        inside = (places < sizes[of]) & is_clear[of]
        of, ids = of[inside], self._ids[inside]
        ends = np.searchsorted(of, np.arange(len(draws) + 1))
        words = [
            draw_words(draw.key, draw.step, ids[start:end])
            for draw, start, end in zip(draws, ends[:-1], ends[1:], strict=True)
        ]
        scores = self._scaled[inside] + as_noise(np.concatenate(words))
        best = np.lexsort((ids, -scores, of))
        winners: list[int | None] = [None] * len(draws)
        for row, start in enumerate(ends[:-1].tolist()):
            if is_clear[row]:
                winners[row] = int(ids[best[start]])
        return winners
