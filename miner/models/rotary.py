"""Rotary position tables, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

POSITIONS_AT_ONCE: Final = 1 << 14
"""Bounds the memory of what is computed in double precision."""


def rotary_tables(
    *, head_size: int, context: int, base: float, divisors: Sequence[float] = ()
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of position * frequency; both of shape (context, head_size / 2).

    Frequencies and angles are rounded to float32, as the model's training code did. `divisors`
    scale the frequencies, one each, if there are any.
    """
    frequencies = np.array(
        [float(1 / Decimal(base) ** (Decimal(i) / head_size)) for i in range(0, head_size, 2)],
        np.float32,
    )
    if divisors:
        frequencies /= np.array(divisors, np.float32)
    positions = np.arange(context, dtype=np.float32)
    parts = [
        _cosine_and_sine((positions[at : at + POSITIONS_AT_ONCE, None] * frequencies).astype("f8"))
        for at in range(0, context, POSITIONS_AT_ONCE)
    ]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _cosine_and_sine(
    angles: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By Taylor series about the nearest quarter turn, right to float32.

    The C library's functions differ in their last bit between machines, which would change the
    model's digest; sums and products do not.
    """
    quarter_high, quarter_low = 1.5707963267341256, 6.077100506506192e-11
    turns = np.rint(angles * 0.6366197723675814)
    rest = (angles - turns * quarter_high) - turns * quarter_low
    square = rest * rest
    cosine, sine = np.ones_like(rest), np.ones_like(rest)
    for power in range(18, 0, -2):
        cosine = 1.0 - cosine * square / (power * (power - 1))
        sine = 1.0 - sine * square / (power * (power + 1))
    sine = sine * rest
    quadrant = turns.astype(np.int64) % 4
    cosines = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    sines = np.choose(quadrant, [sine, cosine, -sine, -cosine])
    return cosines.astype(np.float32), sines.astype(np.float32)
