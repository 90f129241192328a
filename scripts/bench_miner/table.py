"""Tables for a terminal and for Markdown, made of the same cells of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.bench_miner.fleet import KINDS, Worker
from scripts.bench_miner.speed import (
    CELLS,
    GREEDY,
    PREFILL,
    SAMPLED,
    Answers,
    Cell,
    Rate,
    Rates,
    compute_agreement,
    compute_drawing_s,
    compute_rates,
)
from scripts.bench_miner.work import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Headings, then lines of as many cells; the first column is words, the others numbers."""

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


def build_runners_table(workers: Sequence[Worker]) -> Table:
    """What each runner runs on."""
    lines = [[worker.kind.title, worker.version] for worker in workers]
    return Table(title="runners", headings=["", "version"], lines=lines)


def build_speed_table(rates: Rates, *, title: str, cpu: bool) -> Table:
    """Tokens of all rows per second, or per second of processor time if `cpu`."""
    cells = [cell for cell in CELLS if all(cell in by_cell for by_cell in rates.values())]
    lines = [
        [KINDS[runner].title, *(f"{_pick(by_cell[cell], cpu=cpu):.1f}" for cell in cells)]
        for runner, by_cell in rates.items()
    ]
    lines += _ratio_lines(rates, cells, cpu=cpu)
    return Table(title=title, headings=["", *(cell.title for cell in cells)], lines=lines)


def _ratio_lines(rates: Rates, cells: Sequence[Cell], *, cpu: bool) -> list[list[str]]:
    """Each runner of the miner's, divided by the fastest other one on the very same files."""
    lines = []
    for runner in (KINDS[key] for key in rates if KINDS[key].needs is None):
        others = [
            rates[key] for key in rates if KINDS[key].needs and KINDS[key].model == runner.model
        ]
        if others:
            ratios = (
                _pick(rates[runner.key][cell], cpu=cpu)
                / max(_pick(other[cell], cpu=cpu) for other in others)
                for cell in cells
            )
            title = f"{runner.title}, by the best other"
            lines.append([title, *(f"{ratio:.2f}" for ratio in ratios)])
    return lines


def _pick(rate: Rate, *, cpu: bool) -> float:
    return rate.per_cpu_second if cpu else rate.per_second


def build_cost_table(answers: Answers, *, title: str) -> Table:
    """What else there is to know of each runner."""
    rates = compute_rates(answers)
    lines = [
        [
            KINDS[runner].title,
            *(_show_drawing(rates.get(runner), cell) for cell in SAMPLED),
            f"{_peak_bytes(by_cell) / 1e6:,.0f} MB",
            f"{_agreement(answers, runner):.1%}",
        ]
        for runner, by_cell in answers.items()
    ]
    drawing = [f"drawing, {cell.rows} a step" for cell in SAMPLED]
    headings = ["", *drawing, "most memory", "same greedy tokens"]
    return Table(title=title, headings=headings, lines=lines)


def _show_drawing(rates: dict[Cell, Rate] | None, cell: Cell) -> str:
    return "" if rates is None else f"{compute_drawing_s(rates, cell) * 1000:.2f} ms"


def _peak_bytes(by_cell: dict[Cell, list[Answer]]) -> int:
    return max(answer.peak_bytes for given in by_cell.values() for answer in given)


def _agreement(answers: Answers, runner: str) -> float:
    """With the first runner."""
    first = next(iter(answers.values()))
    greedy = (PREFILL, *GREEDY)
    ours, theirs = (
        [answer for cell in greedy for answer in by_cell[cell]]
        for by_cell in (first, answers[runner])
    )
    return compute_agreement(ours, theirs)


def format_text(table: Table) -> str:
    """For a terminal."""
    rows = [table.headings, *table.lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_align(row, widths) for row in rows]
    return "\n".join([table.title, *lines])


def _align(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    return "  ".join([first.ljust(widths[0]), *numbers]).rstrip()


def format_markdown(table: Table) -> str:
    """For a document."""
    rule = ["---", *["---:"] * (len(table.headings) - 1)]
    lines = [_join(row) for row in (table.headings, rule, *table.lines)]
    return "\n".join([f"**{table.title}**", "", *lines])


def _join(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
