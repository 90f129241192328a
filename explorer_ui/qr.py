"""QR codes as one SVG path, made here so that no page needs a script or a picture of another site.

Source of the code itself: ISO/IEC 18004, by segno.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import segno

QUIET_ZONE = 4
"""Light modules around the code, which readers need."""
MAX_TEXT = 512
"""More would be too fine to be read from paper."""
MASK = 0
"""Readers take any. To judge all eight takes eight times as long, on the loop that serves all."""
_KEPT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class QrCode:
    """A code in a square of unit modules."""

    size: int
    """Of one side, with the quiet zone."""
    path: str
    """The dark modules."""


@lru_cache(maxsize=_KEPT)
def draw_qr(text: str) -> QrCode | None:
    """Return the code of a text, which 15 % of damage leaves readable; None if it is too long."""
    if len(text) > MAX_TEXT:
        return None
    matrix = segno.make_qr(text, error="m", mask=MASK).matrix
    pieces = []
    for y, row in enumerate(matrix, start=QUIET_ZONE):
        x = QUIET_ZONE
        for is_dark, group in groupby(row):
            width = len(list(group))
            if is_dark:
                pieces.append(f"M{x} {y}h{width}v1h-{width}z")
            x += width
    return QrCode(size=len(matrix) + 2 * QUIET_ZONE, path="".join(pieces))
