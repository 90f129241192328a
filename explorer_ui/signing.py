"""Who signed the latest blocks: strips with one cell for each height, and the same as a table.

A certificate is complete with a quorum's votes, so a late vote is left out though its authority is
well: pages say "signed" and "not in the certificate", never "offline".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from explorer_ui.sources import Views
from ledger.views import MAX_PAGE, BlockView, HeadView

WINDOW = 200
"""Heights that a strip shows."""

Mark = Literal["signed", "missing", "outside"]
"""outside: no member of the set that certified the block."""
MARKS: tuple[Mark, ...] = ("signed", "missing", "outside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What strips need to know of a block."""

    height: int
    proposer: str
    members: frozenset[str]
    signed: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring blocks with the same mark."""

    mark: Mark
    first_height: int
    last_height: int

    @property
    def blocks(self) -> int:
        """How many they are."""
        return self.last_height - self.first_height + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """How cells are laid out, in the units of the drawing."""

    columns: int
    cell_width: int
    cell_height: int
    gap: int

    @property
    def width(self) -> int:
        """Of a full row."""
        return self.columns * (self.cell_width + self.gap) - self.gap


WIDE = Grid(columns=100, cell_width=8, cell_height=24, gap=2)
NARROW = Grid(columns=40, cell_width=6, cell_height=18, gap=2)
LINE = Grid(columns=WINDOW, cell_width=3, cell_height=14, gap=0)
"""All heights in one row, beside other strips."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A strip as shapes."""

    width: int
    height: int
    shapes: tuple[tuple[Mark, str], ...]
    """An SVG path for each mark that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One authority in the latest blocks."""

    marks: tuple[Mark, ...]
    """Oldest first."""
    first_height: int
    """0 where there are no blocks."""
    proposed: int
    """How many of the blocks it proposed."""

    @property
    def last_height(self) -> int:
        """Of the newest block."""
        return self.first_height + len(self.marks) - 1

    @property
    def signed(self) -> int:
        """Blocks with its vote."""
        return self.marks.count("signed")

    @property
    def due(self) -> int:
        """Blocks whose certificate could hold its vote."""
        return len(self.marks) - self.marks.count("outside")

    @property
    def runs(self) -> list[Run]:
        """Return the strip as stretches of the same mark, newest first."""
        runs, height = [], self.first_height
        for mark, group in groupby(self.marks):
            blocks = len(list(group))
            runs.append(Run(mark=mark, first_height=height, last_height=height + blocks - 1))
            height += blocks
        return runs[::-1]

    def draw(self, grid: Grid) -> Cells:
        """Return its cells row by row, the oldest first."""
        rows = max(1, -(-len(self.marks) // grid.columns))
        pitch = grid.cell_height + grid.gap
        shapes = ((mark, "".join(_draw(self.marks, mark, grid))) for mark in MARKS)
        # A line without gaps fills its place, however short the chain is.
        is_line = not grid.gap and 0 < len(self.marks) < grid.columns
        return Cells(
            width=len(self.marks) * grid.cell_width if is_line else grid.width,
            height=rows * pitch - grid.gap,
            shapes=tuple((mark, path) for mark, path in shapes if path),
        )


def _draw(marks: Sequence[Mark], wanted: Mark, grid: Grid) -> Iterator[str]:
    """Yield rectangles: one for each cell, or one for each stretch where cells touch."""
    for row in range(0, len(marks), grid.columns):
        y = row // grid.columns * (grid.cell_height + grid.gap)
        column = 0
        for mark, group in groupby(marks[row : row + grid.columns]):
            cells = len(list(group))
            if mark == wanted:
                pieces, width = (cells, grid.cell_width)
                if not grid.gap:
                    pieces, width = 1, cells * grid.cell_width
                for piece in range(pieces):
                    x = (column + piece) * (grid.cell_width + grid.gap)
                    yield f"M{x} {y}h{width}v{grid.cell_height}h-{width}z"
            column += cells


class Signing:
    """The latest blocks, remembered: a new head costs reading what is new."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._sealed: deque[Sealed] = deque(maxlen=WINDOW)
        """Oldest first, without gaps."""

    def strip(self, head: HeadView, account: str) -> Strip:
        """Return one authority's part in the latest blocks."""
        self._catch_up(head)
        return Strip(
            marks=tuple(_mark(block, account) for block in self._sealed),
            first_height=self._sealed[0].height if self._sealed else 0,
            proposed=sum(block.proposer == account for block in self._sealed),
        )

    def _catch_up(self, head: HeadView) -> None:
        newest = self._sealed[-1].height if self._sealed else 0
        is_full = len(self._sealed) == min(WINDOW, newest)
        if is_full and newest == head.height:
            return
        above = newest if is_full and newest < head.height else 0
        blocks = self._read(above, head.height)
        if not blocks or blocks[0].height != newest + 1:
            self._sealed.clear()
        self._sealed.extend(_seal(block) for block in blocks)

    def _read(self, above: int, height: int) -> list[BlockView]:
        """Return blocks above one height up to another, oldest first, at most a strip's."""
        above, before = max(above, height - WINDOW), height + 1
        found: list[BlockView] = []
        while before > above + 1:
            page = self._views.blocks(limit=min(MAX_PAGE, before - above - 1), before=before)
            if not page:
                break
            found.extend(page)
            before = page[-1].height
        return found[::-1]


def _seal(block: BlockView) -> Sealed:
    return Sealed(
        height=block.height,
        proposer=block.proposer,
        members=frozenset(vote.account for vote in block.votes),
        signed=frozenset(vote.account for vote in block.votes if vote.signature is not None),
    )


def _mark(block: Sealed, account: str) -> Mark:
    if account not in block.members:
        return "outside"
    return "signed" if account in block.signed else "missing"
