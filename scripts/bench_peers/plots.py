"""Plots of the results, as SVG that a page shows in light and dark: bars, one for each peer.

python -m scripts.bench_peers.plots RESULTS.json FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from scripts.bench_peers.table import Row

WIDTH: Final = 760
LABEL: Final = 270
LINE: Final = 26
TOP: Final = 44
STYLE: Final = (
    "text{font:13px sans-serif;fill:#333}.title{font-weight:bold;font-size:15px}"
    ".node{fill:#2a6fb0}.peer{fill:#9aa5b1}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.peer{fill:#6b7683}}"
)

Bar = tuple[str, float, bool]
"""Label, value, whether it is the node's."""


def main(arguments: list[str]) -> int:
    """Run the command. Returns the exit status."""
    results, folder = map(Path, arguments)
    rows = msgspec.json.decode(results.read_bytes(), type=list[Row])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in draw_all(rows).items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


def draw_all(rows: Sequence[Row]) -> dict[str, str]:
    """Every plot, by file name."""
    cycles = [row for row in rows if row.figure == "job life cycles"]
    records = [row for row in rows if row.figure != "job life cycles"]
    return {
        "peers-rate.svg": draw(
            "Job life cycles a second, 32 at a time", list_bars(cycles, _rate), "{:,.0f}"
        ),
        "peers-cpu.svg": draw(
            "Processor time of a life cycle, µs, all processes", list_bars(cycles, _cpu), "{:,.0f}"
        ),
        "peers-records.svg": draw(
            "Signed records a second, 32 at a time", list_bars(records, _rate), "{:,.0f}"
        ),
    }


def _rate(row: Row) -> tuple[float, float]:
    return row.ours, row.theirs


def _cpu(row: Row) -> tuple[float, float]:
    return row.ours_micros, row.theirs_micros


def list_bars(rows: Sequence[Row], pick: Callable[[Row], tuple[float, float]]) -> list[Bar]:
    """The node's bar, then those of its peers."""
    if not rows:
        return []
    return [("node", pick(rows[0])[0], True), *((row.peer, pick(row)[1], False) for row in rows)]


def draw(title: str, bars: Sequence[Bar], form: str) -> str:
    """One plot."""
    longest = max((value for _, value, _ in bars), default=1)
    height = TOP + LINE * len(bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="0" y="20">{escape(title)}</text>',
    ]
    for number, (label, value, is_ours) in enumerate(bars):
        y = TOP + LINE * number
        length = max((WIDTH - LABEL - 80) * value / longest, 1)
        kind = "node" if is_ours else "peer"
        lines += [
            f'<text x="{LABEL - 10}" y="{y + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{length:.1f}" height="18"/>',
            f'<text x="{LABEL + length + 6:.1f}" y="{y + 14}">{form.format(value)}</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
