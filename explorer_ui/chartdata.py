"""What charts show: how much was done, by which models, at what price, in which rhythm.

They end with the span of the newest block, not with the clock, so every node draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from explorer_ui.drawing import Drawing, Size, draw
from explorer_ui.format import decimal, duration
from explorer_ui.sources import Views
from ledger.transaction import MICROS
from ledger.views import HeadView, UsageView

MILLI = 1000
MAX_MODELS = 5
"""Lines of a chart by model; the others are added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """How far a chart reaches back."""

    title: str
    span_ms: int
    """Of one value: a span that the ledger adds up."""
    spans: int


MINUTES_MS, HOUR_MS, DAY_MS = 300_000, 3_600_000, 86_400_000
RANGES = {
    "day": Range(title="24 hours", span_ms=MINUTES_MS, spans=288),
    "week": Range(title="7 days", span_ms=HOUR_MS, spans=168),
    "month": Range(title="30 days", span_ms=DAY_MS, spans=30),
    "year": Range(title="365 days", span_ms=DAY_MS, spans=365),
}
GLANCE = Range(title="48 hours", span_ms=HOUR_MS, spans=48)
"""Of the home page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart: a value for each span, None where there is none."""

    name: str
    """Untrusted where lines are models."""
    values: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a chart is about."""

    title: str
    unit: str
    """Of the values as they are shown."""
    data_unit: str
    """Of the integers in JSON and CSV."""
    sentence: str
    """What its highest value or its total says, before `in the 24 hours up to block #9`."""
    as_bars: bool
    show: Callable[[int], str]
    read: Callable[[Views, Range, tuple[int, ...]], list[Line]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart with its values."""

    kind: Kind
    reach: Range
    starts_ms: tuple[int, ...]
    lines: list[Line]

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened in its time."""
        return not any(value for line in self.lines for value in line.values)

    @property
    def total(self) -> int:
        """The sum of all its values."""
        return sum(value or 0 for line in self.lines for value in line.values)

    @property
    def sentence(self) -> str:
        """What it shows, in words."""
        return self.kind.sentence.format(
            highest=self.highest, total=f"{self.total:,}", jobs="job" if self.total == 1 else "jobs"
        )

    @property
    def rows(self) -> list[tuple[int, list[str]]]:
        """The spans in which something happened, newest first, as (start, values in words)."""
        columns = zip(*(line.values for line in self.lines), strict=True)
        spans = [pair for pair in zip(self.starts_ms, columns, strict=True) if any(pair[1])]
        return [
            (start, ["" if value is None else self.kind.show(value) for value in values])
            for start, values in reversed(spans)
        ]

    @property
    def highest(self) -> str:
        """The highest value of any line, in words."""
        values = [value or 0 for line in self.lines for value in line.values]
        return f"{self.kind.show(max(values, default=0))} {self.kind.unit}".rstrip()

    def draw(self, size: Size) -> Drawing:
        """Return its shapes."""
        return draw(
            [line.values for line in self.lines],
            self.starts_ms,
            size=size,
            as_bars=self.kind.as_bars,
            name=self.kind.show,
        )


def read_chart(views: Views, kind: Kind, reach: Range, head: HeadView) -> Chart:
    """Return a chart that ends with the span of the newest block."""
    last = head.time_ms - head.time_ms % reach.span_ms
    first = last - (reach.spans - 1) * reach.span_ms
    starts_ms = tuple(range(first, last + 1, reach.span_ms))
    return Chart(
        kind=kind, reach=reach, starts_ms=starts_ms, lines=kind.read(views, reach, starts_ms)
    )


def _read_usage(
    views: Views, reach: Range, starts_ms: tuple[int, ...], model: str | None = None
) -> dict[int, UsageView]:
    rows = views.usage(
        reach.span_ms, from_ms=starts_ms[0], to_ms=starts_ms[-1] + reach.span_ms, model=model
    )
    return {row.start_ms: row for row in rows}


def _read_throughput(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    rows = _read_usage(views, reach, starts_ms)
    values = (rows[t].tokens_micros * 1000 // reach.span_ms if t in rows else 0 for t in starts_ms)
    return [Line(name="all models", values=tuple(values))]


def _read_jobs(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    end_ms = starts_ms[-1] + reach.span_ms
    models = views.top_models(reach.span_ms, from_ms=starts_ms[0], to_ms=end_ms, limit=MAX_MODELS)
    left = {start: row.receipts for start, row in _read_usage(views, reach, starts_ms).items()}
    lines = []
    for model in models:
        rows = _read_usage(views, reach, starts_ms, model)
        values = tuple(rows[t].receipts if t in rows else 0 for t in starts_ms)
        lines.append(Line(name=model, values=values))
        left = {start: jobs - (rows[start].receipts if start in rows else 0)
                for start, jobs in left.items()}  # fmt: skip
    if any(left.values()) or not lines:
        name = "other models" if lines else "all models"
        lines.append(Line(name=name, values=tuple(left.get(t, 0) for t in starts_ms)))
    return lines


def _read_price(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    rows = _read_usage(views, reach, starts_ms)
    prices = {
        start: row.tokens_price_micros * 1000 * MICROS // row.tokens_micros
        for start, row in rows.items()
        if row.tokens_micros
    }
    return [Line(name="all models", values=tuple(prices.get(start) for start in starts_ms))]


def _read_pace(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    rows = views.pace(reach.span_ms, from_ms=starts_ms[0], to_ms=starts_ms[-1] + reach.span_ms)
    gaps = {row.start_ms: row.gap_ms // row.gaps for row in rows if row.gaps}
    return [Line(name="mean", values=tuple(gaps.get(start) for start in starts_ms))]


def _show_rate(micros: int) -> str:
    """Write a rate without the digits that nobody compares."""
    return decimal(micros if micros < MILLI else micros - micros % MILLI)


KINDS = {
    "throughput": Kind(
        title="Throughput",
        unit="tokens a second",
        data_unit="micro tokens a second",
        sentence="At most {highest} were billed",
        as_bars=True,
        show=_show_rate,
        read=_read_throughput,
    ),
    "jobs": Kind(
        title="Jobs by model",
        unit="jobs",
        data_unit="jobs",
        sentence="{total} {jobs} became final",
        as_bars=True,
        show=lambda jobs: f"{jobs:,}",
        read=_read_jobs,
    ),
    "price": Kind(
        title="Price of 1,000 tokens",
        unit="credits",
        data_unit="micro credits",
        sentence="1,000 tokens cost at most {highest}",
        as_bars=False,
        show=decimal,
        read=_read_price,
    ),
    "blocktime": Kind(
        title="Time between blocks",
        unit="",
        data_unit="ms",
        sentence="Blocks were at most {highest} apart on average",
        as_bars=False,
        show=duration,
        read=_read_pace,
    ),
}
