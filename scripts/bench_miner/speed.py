"""Tokens per second of every runner at the same work, in turns, medians.

One cell of the table is one request, which all runners get one after another, round after round.
The median of all steps of a cell counts: a neighbour on the machine who takes the processor for
some of them does not move it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median
from typing import Final

from scripts.bench_miner.fleet import Worker
from scripts.bench_miner.work import Answer, Request

LONG_PROMPT: Final = 512
PROMPT: Final = 64
NEW_TOKENS: Final = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One column of the table."""

    title: str
    rows: int
    """Prompts in the batch."""
    sampled: bool = False
    prefill: bool = False
    """The prompt's tokens count instead of the answer's."""


PREFILL: Final = Cell(title=f"prompt of {LONG_PROMPT}", rows=1, prefill=True)
GREEDY: Final = tuple(
    Cell(title=f"{rows} {'row' if rows == 1 else 'rows'}", rows=rows) for rows in (1, 4, 8, 16)
)
SAMPLED: Final = tuple(Cell(title=f"{rows}, drawn", rows=rows, sampled=True) for rows in (1, 16))
CELLS: Final = (PREFILL, *GREEDY, *SAMPLED)

Answers = dict[str, dict[Cell, list[Answer]]]
"""By runner and cell, in the order of the rounds."""
Rates = dict[str, dict[Cell, "Rate"]]
"""By runner and cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens of all rows together."""

    per_second: float
    per_cpu_second: float


def build_request(cell: Cell, text_ids: Sequence[int], new_tokens: int) -> Request:
    """Pieces of one text as prompts, each row another piece."""
    if cell.prefill:
        return Request(prompts=[text_ids[:LONG_PROMPT]], new_tokens=1, sampled=False)
    starts = range(0, cell.rows * PROMPT, PROMPT)
    prompts = [text_ids[start : start + PROMPT] for start in starts]
    return Request(prompts=prompts, new_tokens=new_tokens, sampled=cell.sampled)


def ask_in_turns(
    workers: Sequence[Worker],
    cells: Sequence[Cell],
    text_ids: Sequence[int],
    *,
    rounds: int,
    new_tokens: int,
) -> Answers:
    """Every runner's answers to every cell, `rounds` of each.

    Raises:
        RunnerError: one ended.
    """
    answers: Answers = {worker.kind.key: {cell: [] for cell in cells} for worker in workers}
    for worker in workers:  # what is allocated or compiled at first use
        worker.ask(build_request(GREEDY[0], text_ids, 2))
    for _ in range(rounds):
        for cell in cells:
            request = build_request(cell, text_ids, new_tokens)
            for worker in workers:
                answers[worker.kind.key][cell].append(worker.ask(request))
    return answers


def compute_rates(answers: Answers) -> Rates:
    """The rate of each cell, of runners that time their steps."""
    return {
        runner: {cell: compute_rate(cell, given) for cell, given in by_cell.items()}
        for runner, by_cell in answers.items()
        if all(answer.steps_s for cell in GREEDY for answer in by_cell.get(cell, []))
    }


def compute_rate(cell: Cell, answers: Sequence[Answer]) -> Rate:
    """The median over all rounds."""
    if cell.prefill:
        tokens = LONG_PROMPT
        times = [answer.first_s for answer in answers]
        cpu_times = [answer.first_cpu_s for answer in answers]
    else:
        tokens = cell.rows
        times = [step for answer in answers for step in answer.steps_s]
        cpu_times = [step for answer in answers for step in answer.steps_cpu_s]
    return Rate(per_second=tokens / median(times), per_cpu_second=tokens / median(cpu_times))


def compute_whole_rates(answers: Answers) -> Rates:
    """New tokens by all of the time that they took, that of reading the prompts included."""
    return {
        runner: {
            cell: Rate(
                per_second=_count_tokens(given) / median(answer.whole_s for answer in given),
                per_cpu_second=_count_tokens(given)
                / median(answer.whole_cpu_s for answer in given),
            )
            for cell, given in by_cell.items()
            if not cell.prefill
        }
        for runner, by_cell in answers.items()
    }


def _count_tokens(answers: Sequence[Answer]) -> int:
    return sum(map(len, answers[0].token_ids))


def compute_agreement(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """Share of greedy tokens before the first that differs, over answers to the same requests.

    What follows a difference answers another text, and says nothing.
    """
    pairs = [
        (row, other)
        for answer, reference in zip(theirs, ours, strict=True)
        for row, other in zip(answer.token_ids, reference.token_ids, strict=True)
    ]
    return sum(map(_count_equal, pairs)) / sum(len(row) for row, _ in pairs)


def _count_equal(pair: tuple[Sequence[int], Sequence[int]]) -> int:
    together = zip(*pair, strict=True)
    return sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1], together))


def compute_drawing_s(rates: Mapping[Cell, Rate], sampled: Cell) -> float:
    """What drawing adds to one token of one row, in processor time."""
    greedy = next(cell for cell in GREEDY if cell.rows == sampled.rows)
    return 1 / rates[sampled].per_cpu_second - 1 / rates[greedy].per_cpu_second
