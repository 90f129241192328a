"""Figures beside their budgets, as one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from scripts.bench_figures.measure import percentile

P99 = 0.99
HEADINGS = ("figure", "value", "p99", "budget", "ok", "CPU µs")


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the table."""

    name: str
    value: float
    """A median where there is a p99."""
    unit: str
    p99: float | None = None
    most: float | None = None
    """The budget of `value`; None where there is none."""
    most_p99: float | None = None
    least: float | None = None
    cpu_micros: float | None = None
    """Processor time of the node for one request."""

    @property
    def is_ok(self) -> bool | None:
        """Whether it keeps its budgets; None without any."""
        held = [
            self.most is None or self.value <= self.most,
            self.least is None or self.value >= self.least,
            self.most_p99 is None or (self.p99 is not None and self.p99 <= self.most_p99),
        ]
        has_budget = any(bound is not None for bound in (self.most, self.least, self.most_p99))
        return all(held) if has_budget else None

    @property
    def budget(self) -> str:
        """In words."""
        parts = [
            f"<= {show(self.most)}" if self.most is not None else "",
            f">= {show(self.least)}" if self.least is not None else "",
            f"p99 <= {show(self.most_p99)}" if self.most_p99 is not None else "",
        ]
        return ", ".join(part for part in parts if part)


def summarize_times(
    name: str,
    times: Sequence[float],
    *,
    unit: str = "ms",
    most: float | None = None,
    most_p99: float | None = None,
    cpu_micros: float | None = None,
) -> Figure:
    """Return median and p99 of single times."""
    return Figure(
        name=name,
        value=median(times),
        unit=unit,
        p99=percentile(times, P99),
        most=most,
        most_p99=most_p99,
        cpu_micros=cpu_micros,
    )


def format_table(figures: Iterable[Figure]) -> str:
    """Return the table as Markdown, which is read as it is, too."""
    lines = [HEADINGS, *(_format_cells(figure) for figure in figures)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in (lines[0], rule, *lines[1:])
    )


def _format_cells(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        f"{show(figure.value)} {figure.unit}".rstrip(),
        "" if figure.p99 is None else f"{show(figure.p99)} {figure.unit}",
        figure.budget,
        {True: "yes", False: "NO", None: ""}[figure.is_ok],
        "" if figure.cpu_micros is None else f"{figure.cpu_micros:,.0f}",
    )


def show(number: float) -> str:
    """Write a number with as many digits as anybody compares."""
    digits = 0 if number >= 100 or number == int(number) else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"
