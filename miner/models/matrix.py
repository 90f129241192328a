"""Weight matrices of a GGUF as they are read: rows in another order, several below each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from miner.errors import ModelFormatError
from miner.models.gguf import Tensor
from miner.models.kinds import TensorKind

WEIGHTS_AT_ONCE: Final = 1 << 22
"""Bounds the memory of what is unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A matrix of one tensor."""

    name: str
    tensor: Tensor
    order: NDArray[np.intp] | None = None
    """Which row comes at each place; None: as they stand."""

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Block records of these rows."""
        wanted = slice(first, last) if self.order is None else self.order[first:last]
        return self.tensor.blocks[wanted]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Matrices of one kind and width below each other."""

    parts: Sequence[Rows]

    @property
    def kind(self) -> TensorKind:
        """How the weights are stored."""
        return self.parts[0].tensor.kind

    @property
    def rows(self) -> int:
        """Outputs of the matrix."""
        return sum(part.tensor.shape[0] for part in self.parts)

    @property
    def columns(self) -> int:
        """Inputs of the matrix."""
        return self.parts[0].tensor.shape[1]

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Block records, a bounded number of rows at a time."""
        step = max(WEIGHTS_AT_ONCE // self.columns, 1)
        for part in self.parts:
            for first in range(0, part.tensor.shape[0], step):
                yield part.read(first, min(first + step, part.tensor.shape[0]))


def refuse_infinite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """The values, which must be numbers: a model of others answers nothing.

    Raises:
        ModelFormatError: one is infinite or none at all.
    """
    exponents = values & 0x7F80 if values.dtype == np.uint16 else None  # of BF16
    finite = np.isfinite(values) if exponents is None else exponents != 0x7F80
    if not finite.all():
        raise ModelFormatError(f"GGUF tensor {name!r}: weights that are no finite numbers")
    return values


def can_join(parts: Sequence[Rows]) -> bool:
    """Whether these make one matrix."""
    return len({part.tensor.kind for part in parts}) == 1


def halves_order(rows: int, heads: int) -> NDArray[np.intp]:
    """Rows of Q or K from interleaved pairs (x0 y0 x1 y1 …) to halves, head by head."""
    pairs = np.arange(rows).reshape(heads, rows // heads // 2, 2)
    return pairs.swapaxes(1, 2).reshape(rows)
