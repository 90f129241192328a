"""Measure the miner beside its peers on this machine.

    make bench-miner                           speed, about ten minutes
    make bench-miner LLAMA=1                   the same with llama.cpp, compiled here first
    make bench-miner ARGS="--quick"            one short round
    make bench-miner ARGS=--reference          agreement with transformers in fp32 instead of speed
    make bench-miner ARGS="--markdown FILE"    writes the tables there, too

All runners get the same prompts, lengths and threads, one after another in every round; what
counts is the median of all steps, and the ratio more than the number. docs/miner-performance.md
says what is compared with what, and why that is fair.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from miner.errors import MinerError
from miner.tokenizer import ChatTokenizer
from scripts.bench_figures.measure import describe_machine
from scripts.bench_miner.fleet import (
    KINDS,
    ROOT,
    Kind,
    Models,
    RunnerError,
    is_installed,
    open_workers,
)
from scripts.bench_miner.models import prepare_models
from scripts.bench_miner.reference import compare_with_reference
from scripts.bench_miner.speed import (
    CELLS,
    GREEDY,
    NEW_TOKENS,
    PREFILL,
    Answers,
    ask_in_turns,
    compute_rates,
    compute_whole_rates,
)
from scripts.bench_miner.table import (
    Table,
    build_cost_table,
    build_runners_table,
    build_speed_table,
    format_markdown,
    format_text,
)

TEXT = ROOT / "LICENSE"
"""Every prompt is a piece of this, an English text that does not change."""
ROUNDS = 2
QUICK_NEW_TOKENS = 8


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _build_parser().parse_args(arguments)
    machine = describe_machine()
    kinds = [KINDS[name] for name in options.only or KINDS]
    missing = [kind for kind in kinds if not is_installed(kind)]
    for kind in missing:
        print(f"not measured: {kind.title}, which is not installed", file=sys.stderr)
    present = [kind for kind in kinds if kind not in missing]
    print(machine)
    tables: list[Table] = []
    try:
        models = prepare_models(_say)
        made = (
            compare_with_reference(models, _say)
            if options.reference
            else measure_speed(present, models, options)
        )
        for table in made:
            print("\n" + format_text(table), flush=True)
            tables.append(table)
    except (MinerError, RunnerError) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    if options.markdown is not None:
        text = "\n\n".join([f"{machine}.", *map(format_markdown, tables)])
        options.markdown.write_text(text + "\n", encoding="utf-8")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of short answers")
    parser.add_argument(
        "--only", action="append", choices=KINDS, help="measure this runner; repeatable"
    )
    parser.add_argument(
        "--threads",
        action="append",
        type=int,
        help="so many for each runner; repeatable; without it one, then all cores",
    )
    parser.add_argument(
        "--reference", action="store_true", help="compare with transformers in fp32 instead"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there, too")
    return parser


def measure_speed(
    kinds: Sequence[Kind], models: Models, options: argparse.Namespace
) -> Iterator[Table]:
    """What runs, then tables of one thread, then of all cores.

    Raises:
        RunnerError: a runner failed.
    """
    text_ids = ChatTokenizer(models.onnx).encode(TEXT.read_text(encoding="utf-8"))
    counts = options.threads or sorted({1, len(os.sched_getaffinity(0))})
    for threads in counts:
        with open_workers(kinds, models, threads) as workers:
            if threads == counts[0]:
                yield build_runners_table(workers)
            _say(f"measuring {len(workers)} runners with {threads} threads")
            answers = ask_in_turns(
                workers,
                CELLS if threads == 1 else (PREFILL, *GREEDY),
                text_ids,
                rounds=1 if options.quick else ROUNDS,
                new_tokens=QUICK_NEW_TOKENS if options.quick else NEW_TOKENS,
            )
        yield from build_tables(answers, threads)


def build_tables(answers: Answers, threads: int) -> Iterator[Table]:
    """All tables of one number of threads."""
    steps, whole = compute_rates(answers), compute_whole_rates(answers)
    title = f"{threads} {'thread' if threads == 1 else 'threads'}"
    load = f"load {os.getloadavg()[0]:.1f} after it"
    for rates, what in ((steps, "tokens"), (whole, "tokens with the time for prompts")):
        yield build_speed_table(rates, title=f"{title}: {what} per second, {load}", cpu=False)
        yield build_speed_table(rates, title=f"{title}: {what} per CPU second", cpu=True)
    if threads == 1:
        yield build_cost_table(answers, title=f"{title}: costs")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
