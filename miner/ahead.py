"""Noise of whole vocabularies, found by other threads while a GPU computes the logits.

Where nothing is cut from a distribution every id may be drawn, if its noise is loud enough. What
the noise is depends on the key and the step alone, so it can be found before the logits are there;
of the vocabulary's noise only what is loud is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from miner.sampling import MICROS, Draw, find_noisy, least_word

LOUD: Final = 3.0
"""One id in 20 has so much noise. What asks for less, which is rare, is found when it is asked."""
MAX_THREADS: Final = 4

Noise: TypeAlias = tuple[NDArray[np.intp], NDArray[np.uint32]]
"""Ids, rising, and the words of their noise."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The noise of some draws, as far as it was looked for."""

    parts: Mapping[int, tuple[Future[list[Noise]], int]] = field(default_factory=dict)
    """Of a draw by its row: which part it is in, and where."""

    def find(self, at: int, draw: Draw, vocabulary: int, least: float) -> Noise:
        """As `find_noisy`, of the draw from row `at`."""
        part = self.parts.get(at)
        if part is None or least < LOUD:
            return find_noisy(draw.key, draw.step, vocabulary, least)
        future, place = part
        ids, words = future.result()[place]
        is_enough = words >= least_word(least)
        return ids[is_enough], words[is_enough]


class NoiseAhead:
    """Threads that look for noise."""

    def __init__(self, threads: int) -> None:
        """So many; beside them one takes the steps."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="noise")

    def begin(self, draws: Mapping[int, Draw], vocabulary: int) -> Ahead:
        """Look for the noise of those draws that may take any id."""
        wanted = [
            at
            for at, draw in draws.items()
            if draw.params.temperature_micros and draw.params.top_p_micros >= MICROS
        ]
        parts: dict[int, tuple[Future[list[Noise]], int]] = {}
        for first in range(min(self._threads, len(wanted))):
            rows = wanted[first :: self._threads]
            found = self._pool.submit(_find_all, [draws[at] for at in rows], vocabulary)
            parts |= {at: (found, place) for place, at in enumerate(rows)}
        return Ahead(parts)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _find_all(draws: Sequence[Draw], vocabulary: int) -> list[Noise]:
    return [find_noisy(draw.key, draw.step, vocabulary, LOUD) for draw in draws]
