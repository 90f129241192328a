"""`make simulate`: run histories and mutants, or replay one history with its trace."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.history import draw_plan, run_history
from tests.simulation.mutants import MUTANTS
from tests.simulation.report import run_many


def main() -> int:
    """Return 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many histories, from --first")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first one")
    parser.add_argument("--seed", type=int, help="replay this history and print its trace")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed)
    return simulate(range(arguments.first, arguments.first + arguments.seeds))


def simulate(seeds: range) -> int:
    """Run the histories and print what came of them."""
    started = time.monotonic()
    report = run_many(seeds, lambda done: show(f"{done:,} of {len(seeds):,} histories"))
    show("")
    print("\n".join(report.list_lines()))
    missed = [mutant.name for mutant in MUTANTS if not mutant.catch()]
    print(f"mutants caught: {len(MUTANTS) - len(missed)} of {len(MUTANTS)}", *missed)
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if report.failures or missed else 0


def show(progress: str) -> None:
    """Write over the line before, where somebody watches."""
    if sys.stdout.isatty():
        print(f"\r{progress:<40}\r", end="", flush=True)


def replay(seed: int) -> int:
    """Run one history and print all of it."""
    plan = draw_plan(seed)
    result = run_history(plan, keeps_trace=True)
    print("".join(result.trace), end="")
    print(plan)
    print(f"{result.counts}, {result.heights} heights, healed in {result.heal_ms} ms")
    print(f"trace {result.trace_hash}")
    print(result.failure or "all held")
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main())
