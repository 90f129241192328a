"""From turns to the table: medians, ratios, goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import msgspec

from scripts.bench_peers.peers import Turn

HEADINGS: Final = (
    *("figure", "node", "peer", "", "ratio", "goal", "met"),
    *("node CPU µs", "peer CPU µs", "CPU ratio"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is compared."""

    peer: str
    ours: str
    """The key of the node's own turns that it is compared with."""
    theirs: str
    goal: float | None
    """How many times the peer's rate the node's is to reach."""


FIGURES: Final = (
    Figure(peer="arq, Redis fsync always", ours="node", theirs="arq-always", goal=7),
    Figure(peer="arq, Redis fsync every second", ours="node", theirs="arq-everysec", goal=7),
    Figure(peer="Celery, Redis fsync always", ours="node", theirs="celery-always", goal=15),
    Figure(peer="Celery, Redis fsync every second", ours="node", theirs="celery-everysec", goal=15),
    Figure(peer="procrastinate, PostgreSQL", ours="node", theirs="procrastinate", goal=13),
    Figure(peer="FastAPI and SQLite, signed", ours="node", theirs="web", goal=None),
    Figure(peer="anvil, a block a second", ours="records", theirs="anvil", goal=2),
)
WHAT: Final = {"node": "job life cycles", "records": "signed records"}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line: medians over all rounds."""

    figure: str
    peer: str
    ours: float
    """A second."""
    theirs: float
    ratio: float
    """Median of the rounds' ratios."""
    goal: float | None
    ours_micros: float
    """Processor time of one, of all processes together."""
    theirs_micros: float
    ours_server_micros: float
    """Of servers, databases and workers alone."""
    theirs_server_micros: float

    @property
    def cpu_ratio(self) -> float:
        """How many times as much processor time the peer takes."""
        return self.theirs_micros / self.ours_micros


def build_rows(turns: Mapping[str, Sequence[Turn]]) -> list[Row]:
    """A row for each figure of which both sides were measured."""
    return [
        _build_row(figure, turns[figure.ours], turns[figure.theirs])
        for figure in FIGURES
        if turns.get(figure.ours) and turns.get(figure.theirs)
    ]


def _build_row(figure: Figure, ours: Sequence[Turn], theirs: Sequence[Turn]) -> Row:
    return Row(
        figure=WHAT[figure.ours],
        peer=figure.peer,
        ours=median(turn.per_second for turn in ours),
        theirs=median(turn.per_second for turn in theirs),
        ratio=median(
            our.per_second / their.per_second for our, their in zip(ours, theirs, strict=True)
        ),
        goal=figure.goal,
        ours_micros=_median_micros(ours),
        theirs_micros=_median_micros(theirs),
        ours_server_micros=median(turn.server_micros for turn in ours),
        theirs_server_micros=median(turn.server_micros for turn in theirs),
    )


def _median_micros(turns: Sequence[Turn]) -> float:
    return median(turn.server_micros + turn.driver_micros for turn in turns)


def list_cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    if row.goal is None:
        goal, met = "", ""
    else:
        goal, met = f">= {row.goal:g}", "yes" if row.ratio >= row.goal else "no"
    return (
        row.figure,
        f"{row.ours:,.0f}/s",
        row.peer,
        f"{row.theirs:,.0f}/s",
        f"{row.ratio:.2f}",
        goal,
        met,
        f"{row.ours_micros:,.0f}",
        f"{row.theirs_micros:,.0f}",
        f"{row.cpu_ratio:.2f}",
    )


def format_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [HEADINGS, *map(list_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def format_markdown(rows: Sequence[Row]) -> str:
    """For a document."""
    rule = ("---", "---:", "---", "---:", "---:", "---", "---", "---:", "---:", "---:")
    lines = (HEADINGS, rule, *map(list_cells, rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
