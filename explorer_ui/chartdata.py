"""What charts show: how much was done, by which models, at what price, in which rhythm.

They end with the span of the newest block, not with the clock, so every node draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from explorer_ui.drawing import Drawing, Size, draw
from explorer_ui.format import decimal, duration
from explorer_ui.sources import Views
from ledger.transaction import MICROS
from ledger.views import HeadView

MILLI = 1000
MAX_MODELS = 5
"""Lines of a chart by model; the others are added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """How far a chart reaches back."""

    title: str
    span_ms: int
    """Of one value."""
    spans: int
    stored_ms: int
    """Of the sums that it is added up from: a span that the ledger keeps."""
    offset_ms: int = 0
    """When the first span since 1970 begins."""

    def begin(self, time_ms: int) -> int:
        """Return when the span of a time begins."""
        return time_ms - (time_ms - self.offset_ms) % self.span_ms


MINUTES_MS, HOUR_MS, DAY_MS, WEEK_MS = 300_000, 3_600_000, 86_400_000, 604_800_000
QUARTER_MS = 3 * MINUTES_MS
MONDAY_MS = 4 * DAY_MS
"""The first Monday of 1970."""


def _reach(title: str, span_ms: int, spans: int) -> Range:
    return Range(title=title, span_ms=span_ms, spans=spans, stored_ms=span_ms)


# No screen has room for 300 bars with air between them, and no reader for as many lines.
RANGES = {
    "day": Range(title="24 hours", span_ms=QUARTER_MS, spans=96, stored_ms=MINUTES_MS),
    "week": _reach("7 days", HOUR_MS, 168),
    "month": _reach("30 days", DAY_MS, 30),
    "quarter": _reach("90 days", DAY_MS, 90),
    "year": Range(
        title="52 weeks", span_ms=WEEK_MS, spans=52, stored_ms=DAY_MS, offset_ms=MONDAY_MS
    ),
}
GLANCE = _reach("48 hours", HOUR_MS, 48)
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
    tab: str
    """The same beside the other charts' names: so short that a phone has them in one line."""
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
    last = reach.begin(head.time_ms)
    first = last - (reach.spans - 1) * reach.span_ms
    starts_ms = tuple(range(first, last + 1, reach.span_ms))
    return Chart(
        kind=kind, reach=reach, starts_ms=starts_ms, lines=kind.read(views, reach, starts_ms)
    )


class _Usage(NamedTuple):
    """What became final in one span."""

    receipts: int
    tokens_micros: int
    price_micros: int


_NOTHING = _Usage(0, 0, 0)


def _read_usage(
    views: Views, reach: Range, starts_ms: tuple[int, ...], model: str | None = None
) -> dict[int, _Usage]:
    """Return the spans in which anything became final."""
    rows = views.usage(
        reach.stored_ms, from_ms=starts_ms[0], to_ms=starts_ms[-1] + reach.span_ms, model=model
    )
    sums: dict[int, _Usage] = {}
    for row in rows:
        start = reach.begin(row.start_ms)
        receipts, tokens_micros, price_micros = sums.get(start, _NOTHING)
        sums[start] = _Usage(
            receipts + row.receipts,
            tokens_micros + row.tokens_micros,
            price_micros + row.tokens_price_micros,
        )
    return sums


def _read_throughput(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    sums = _read_usage(views, reach, starts_ms)
    values = (sums.get(t, _NOTHING).tokens_micros * 1000 // reach.span_ms for t in starts_ms)
    return [Line(name="all models", values=tuple(values))]


def _read_jobs(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    end_ms = starts_ms[-1] + reach.span_ms
    models = views.top_models(reach.stored_ms, from_ms=starts_ms[0], to_ms=end_ms, limit=MAX_MODELS)
    left = _count_jobs(views, reach, starts_ms, None)
    lines = []
    for model in models:
        values = _count_jobs(views, reach, starts_ms, model)
        lines.append(Line(name=model, values=values))
        left = tuple(jobs - taken for jobs, taken in zip(left, values, strict=True))
    if any(left) or not lines:
        lines.append(Line(name="other models" if lines else "all models", values=left))
    return lines


def _count_jobs(
    views: Views, reach: Range, starts_ms: tuple[int, ...], model: str | None
) -> tuple[int, ...]:
    sums = _read_usage(views, reach, starts_ms, model)
    return tuple(sums.get(start, _NOTHING).receipts for start in starts_ms)


def _read_price(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    prices = {
        start: usage.price_micros * 1000 * MICROS // usage.tokens_micros
        for start, usage in _read_usage(views, reach, starts_ms).items()
        if usage.tokens_micros
    }
    return [Line(name="all models", values=tuple(prices.get(start) for start in starts_ms))]


def _read_pace(views: Views, reach: Range, starts_ms: tuple[int, ...]) -> list[Line]:
    sums: dict[int, tuple[int, int]] = {}
    end_ms = starts_ms[-1] + reach.span_ms
    for row in views.pace(reach.stored_ms, from_ms=starts_ms[0], to_ms=end_ms):
        start = reach.begin(row.start_ms)
        gaps, gap_ms = sums.get(start, (0, 0))
        sums[start] = gaps + row.gaps, gap_ms + row.gap_ms
    means = {start: gap_ms // gaps for start, (gaps, gap_ms) in sums.items() if gaps}
    return [Line(name="mean", values=tuple(means.get(start) for start in starts_ms))]


def _show_rate(micros: int) -> str:
    """Write a rate without the digits that nobody compares."""
    return decimal(micros if micros < MILLI else micros - micros % MILLI)


KINDS = {
    "throughput": Kind(
        title="Throughput",
        tab="Throughput",
        unit="tokens a second",
        data_unit="micro tokens a second",
        sentence="At most {highest} were billed",
        as_bars=True,
        show=_show_rate,
        read=_read_throughput,
    ),
    "jobs": Kind(
        title="Jobs by model",
        tab="Jobs",
        unit="jobs",
        data_unit="jobs",
        sentence="{total} {jobs} became final",
        as_bars=True,
        show=lambda jobs: f"{jobs:,}",
        read=_read_jobs,
    ),
    "price": Kind(
        title="Price of 1,000 tokens",
        tab="Price",
        unit="credits",
        data_unit="micro credits",
        sentence="1,000 tokens cost at most {highest}",
        as_bars=False,
        show=decimal,
        read=_read_price,
    ),
    "blocktime": Kind(
        title="Time between blocks",
        tab="Block time",
        unit="",
        data_unit="ms",
        sentence="Blocks were at most {highest} apart on average",
        as_bars=False,
        show=duration,
        read=_read_pace,
    ),
}
