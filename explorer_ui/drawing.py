"""A chart as shapes: where bars, lines and labels stand. Plain numbers; templates write the SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from explorer_ui.format import MAX_TIME_MS

Anchor = Literal["start", "middle", "end"]
Values = Sequence[int | None]

DAY_MS = 86_400_000
GAP = 0.2
"""Share of a bar's place that is left empty."""
DOT = 2.0
"""Half the side of a point that has no neighbour to be joined with."""
MAX_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large a drawing is, in the units of its own coordinates."""

    width: int
    height: int
    left: int = 0
    """Room for the labels of the scale."""
    bottom: int = 0
    """Room for the labels of the time."""
    times: int = 0
    """How many labels the time has."""


WIDE = Size(width=960, height=300, left=76, bottom=26, times=7)
NARROW = Size(width=320, height=220, left=64, bottom=24, times=3)
SMALL = Size(width=480, height=110)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A text at a place."""

    x: float
    y: float
    text: str
    anchor: Anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """All that is drawn."""

    size: Size
    shapes: list[str]
    """One SVG path for each line of the chart, in its order."""
    rules: list[float]
    """Heights of the horizontal lines."""
    labels: list[Label]


def draw(
    lines: Sequence[Values],
    starts_ms: Sequence[int],
    *,
    size: Size,
    as_bars: bool,
    name: Callable[[int], str],
) -> Drawing:
    """Return a chart of lines over equal spans; bars are stacked in the order of the lines.

    Args:
        lines: a value for each span, None where there is none; never negative.
        starts_ms: when the spans begin.
        size: of the drawing.
        as_bars: bars from the ground, or lines from point to point.
        name: writes a value of the scale.
    """
    top = find_top(_find_highest(lines, stacked=as_bars))
    ground, ceiling = size.height - size.bottom - 1.0, 8.0
    scale = (ground - ceiling) / top
    step = (size.width - size.left) / max(1, len(starts_ms))
    shapes = []
    # A week has 168 bars of several lines: what they share is written once.
    lefts = [str(_round(size.left + (i + GAP / 2) * step)) for i in range(len(starts_ms))]
    width = str(_round(step * (1 - GAP)))
    below = [0] * len(starts_ms)
    for values in lines:
        if as_bars:
            shapes.append("".join(_draw_bars(values, below, lefts, width, ground, scale)))
            below = [low + (value or 0) for low, value in zip(below, values, strict=True)]
        else:
            shapes.append("".join(_draw_line(values, size.left, step, ground, scale)))
    ticks = list(range(0, top + 1, find_step(top))) if size.left else [0]
    return Drawing(
        size=size,
        shapes=shapes,
        rules=[_round(ground - tick * scale) for tick in ticks],
        labels=[
            *(
                Label(x=size.left - 8, y=_round(ground - t * scale + 4), text=name(t), anchor="end")
                for t in ticks
                if size.left
            ),
            *_label_times(starts_ms, size, step),
        ],
    )


def find_step(top: int) -> int:
    """Return the distance of the ticks of a scale: 1, 2 or 5 with zeros; four reach the top."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * MAX_TICKS >= top:
                return step * factor
        step *= 10


def find_top(highest: int) -> int:
    """Return the end of a scale: the first tick that is not below the highest value."""
    step = find_step(max(1, highest))
    return -(-max(1, highest) // step) * step


def _find_highest(lines: Sequence[Values], *, stacked: bool) -> int:
    columns = [[value or 0 for value in column] for column in zip(*lines, strict=True)]
    return max((sum(column) if stacked else max(column) for column in columns), default=0)


def _draw_bars(
    values: Values,
    below: Sequence[int],
    lefts: Sequence[str],
    width: str,
    ground: float,
    scale: float,
) -> Iterator[str]:
    for value, low, left in zip(values, below, lefts, strict=True):
        if value:
            height = max(0.5, round(value * scale, 1))
            yield f"M{left} {round(ground - low * scale, 1)}v-{height}h{width}v{height}z"


def _draw_line(
    values: Values, left: int, step: float, ground: float, scale: float
) -> Iterator[str]:
    joined = False
    for index, value in enumerate(values):
        if value is None:
            joined = False
            continue
        x, y = _round(left + (index + 0.5) * step), _round(ground - value * scale)
        is_last = index + 1 == len(values) or values[index + 1] is None
        if not joined and is_last:
            yield f"M{_round(x - DOT)} {y}h{2 * DOT}"
        else:
            yield f"{'L' if joined else 'M'}{x} {y}"
        joined = True


def _label_times(starts_ms: Sequence[int], size: Size, step: float) -> Iterator[Label]:
    if not starts_ms or not size.times:
        return
    last = len(starts_ms) - 1
    by_day = starts_ms[-1] - starts_ms[0] >= 2 * DAY_MS
    for number in range(size.times):
        index = round(number * last / (size.times - 1))
        anchor: Anchor = "middle"
        if number in {0, size.times - 1}:
            anchor = "end" if number else "start"
        x = size.left + (index + (0.5, 0, 1)[("middle", "start", "end").index(anchor)]) * step
        text = _name_time(starts_ms[index], by_day=by_day)
        yield Label(x=_round(x), y=size.height - 6, text=text, anchor=anchor)


def _name_time(time_ms: int, *, by_day: bool) -> str:
    moment = datetime.fromtimestamp(min(time_ms, MAX_TIME_MS) // 1000, UTC)
    return f"{moment:%Y-%m-%d}" if by_day else f"{moment:%H:%M}"


def _round(number: float) -> float:
    return round(number, 1)
