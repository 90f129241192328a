"""One row of logits, as far as drawing a token needs it.

On a CPU all of it is at hand. A GPU hands over the row, too, but has looked at it already: to find
the likely ids the host looks only into the blocks of the vocabulary whose largest logit says that
there are some. Both give the same ids and logits; the total may differ in its last digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 64
"""Neighbouring ids whose largest logit a device tells."""


class Row(Protocol):
    """What the sampler asks of a row."""

    @property
    def size(self) -> int:
        """Of the vocabulary."""

    @property
    def top(self) -> float:
        """The largest logit."""

    def is_finite(self) -> bool:
        """Whether it is made of numbers."""

    def find_likeliest(self) -> int:
        """The id of the largest logit, the lowest of several."""

    def find_above(self, bound: float) -> NDArray[np.intp]:
        """Ids with a logit of so much or more, rising."""

    def add_up(self, temperature: float) -> float:
        """The sum of exp((logit - top) / temperature), within 2e-5 of itself."""

    def read(self, ids: NDArray[np.intp]) -> NDArray[np.float64]:
        """Logits of these ids."""

    def read_all(self) -> NDArray[np.float64]:
        """Logits of all ids."""


class Rows(Protocol):
    """Those of one step."""

    def __getitem__(self, index: int, /) -> Row:
        """One of them."""


class WholeRow:
    """A row in the host's memory, of which nothing else is known."""

    def __init__(self, logits: NDArray[Any]) -> None:
        """Of shape (vocabulary,)."""
        self._logits = logits
        self.size = logits.size
        self.top = float(logits.max())

    def is_finite(self) -> bool:
        """See `Row`."""
        return bool(np.isfinite(self._logits).all())

    def find_likeliest(self) -> int:
        """See `Row`."""
        return int(self._logits.argmax())

    def find_above(self, bound: float) -> NDArray[np.intp]:
        """See `Row`."""
        return np.flatnonzero(self._logits >= bound)

    def add_up(self, temperature: float) -> float:
        """See `Row`."""
        scaled = (self._logits - self.top) * np.float32(1 / temperature)
        return float(np.exp(scaled, dtype=np.float32).sum(dtype=np.float64))

    def read(self, ids: NDArray[np.intp]) -> NDArray[np.float64]:
        """See `Row`."""
        return self._logits[ids].astype(np.float64)

    def read_all(self) -> NDArray[np.float64]:
        """See `Row`."""
        return self._logits.astype(np.float64)


class PeakedRows:
    """Rows that a device has looked at."""

    def __init__(
        self,
        logits: NDArray[Any],
        peaks: NDArray[np.float32],
        totals: NDArray[np.float32],
        temperatures: Sequence[float],
    ) -> None:
        """What the device told.

        Args:
            logits: shape (rows, vocabulary), in whatever precision.
            peaks: the largest of each BLOCK of them, shape (rows, blocks).
            totals: of each row, what `add_up` returns of its temperature.
            temperatures: of each row; only this one is asked for.
        """
        self.logits = logits
        self.totals = totals.astype(np.float64)
        self.temperatures = np.array(temperatures)
        self.tops = peaks.max(axis=1).astype(np.float64)
        self._peaks = peaks
        # What is no number makes the sum none.
        self.are_finite = np.isfinite(self.tops) & np.isfinite(self.totals)

    def __getitem__(self, index: int, /) -> PeakedRow:
        """See `Rows`."""
        return PeakedRow(self, index)

    def find_above(
        self, rows: NDArray[np.intp], bounds: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Ids with a logit of `bounds` or more, of some rows, each with a bound of its own.

        Returns:
            For each place that was found: which of `rows` it is in, its id and its logit; row
            after row, ids rising.
        """
        bounds = bounds.astype(np.float32)
        of, blocks = np.nonzero(self._peaks[rows] >= bounds[:, None])
        ids = blocks[:, None] * BLOCK + _OFFSETS
        # The last block may be filled up with ids that are none.
        read = self.logits[rows[of][:, None], np.minimum(ids, self.logits.shape[1] - 1)]
        found = (read.astype(np.float32) >= bounds[of][:, None]) & (ids < self.logits.shape[1])
        at, _ = np.nonzero(found)
        return of[at], ids[found], read[found].astype(np.float64)

    def find_likeliest(self, row: int) -> int:
        """As `Row`."""
        start = int(self._peaks[row].argmax()) * BLOCK
        return start + int(self.logits[row, start : start + BLOCK].argmax())


class PeakedRow:
    """One of them."""

    def __init__(self, rows: PeakedRows, index: int) -> None:
        """The row at this index."""
        self._rows = rows
        self._index = index
        self.size = rows.logits.shape[1]
        self.top = float(rows.tops[index])

    def is_finite(self) -> bool:
        """See `Row`."""
        return bool(self._rows.are_finite[self._index])

    def find_likeliest(self) -> int:
        """See `Row`."""
        return self._rows.find_likeliest(self._index)

    def find_above(self, bound: float) -> NDArray[np.intp]:
        """See `Row`."""
        return self._rows.find_above(np.array([self._index]), np.array([bound]))[1]

    def add_up(self, temperature: float) -> float:
        """See `Row`."""
        known = self._rows.temperatures[self._index]
        if temperature != known:
            raise AssertionError(f"temperature {temperature}, the device was told {known}")
        return float(self._rows.totals[self._index])

    def read(self, ids: NDArray[np.intp]) -> NDArray[np.float64]:
        """See `Row`."""
        logits: NDArray[np.float64] = self._rows.logits[self._index][ids].astype(np.float64)
        return logits

    def read_all(self) -> NDArray[np.float64]:
        """See `Row`."""
        logits: NDArray[np.float64] = self._rows.logits[self._index].astype(np.float64)
        return logits


_OFFSETS: Final[NDArray[np.intp]] = np.arange(BLOCK)
