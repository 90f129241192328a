"""Many histories: spread over the cores, added up, and told in a few lines."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields

from tests.simulation.history import Result, draw_plan, run_history
from tests.simulation.network import Counts

CHUNK = 20
"""Histories that a worker is given at a time."""
MAX_SHOWN = 10
"""Failures told in full."""

TOLD = {"fork": "forks", "stuck": "stuck", "lost final": "lost finals"}
"""Failures that are counted by themselves, 0 of them too."""


@dataclass
class Report:
    """What came of many histories."""

    histories: int = 0
    heights: int = 0
    counts: Counts = field(default_factory=Counts)
    heal_ms: list[int] = field(default_factory=list)
    failures: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    """Summed over the workers."""

    def add(self, result: Result) -> None:
        self.histories += 1
        self.heights += result.heights
        self.seconds += result.seconds
        for count in fields(Counts):
            total = getattr(self.counts, count.name) + getattr(result.counts, count.name)
            setattr(self.counts, count.name, total)
        if result.failure:
            self.failures.append(result)
        else:
            self.heal_ms.append(result.heal_ms)

    def count_failures(self, rule: str) -> int:
        return sum(result.rule == rule for result in self.failures)

    def list_lines(self) -> list[str]:
        """Return what happened, in lines for a terminal."""
        c = self.counts
        others = len(self.failures) - sum(map(self.count_failures, TOLD))
        lines = [
            f"{self.histories:,} histories, {c.events:,} events, {self.heights:,} heights",
            f"{c.crashes:,} crashes, {c.partitions:,} partitions, {c.set_changes:,} set changes, "
            f"{c.evidence:,} pieces of evidence, {c.audits:,} audits",
            f"{c.forged:,} forged certificates sent, {c.refused:,} messages and blocks refused",
            ", ".join(f"{self.count_failures(rule)} {name}" for rule, name in TOLD.items())
            + f", {others} other failures",
            self._describe_heal(),
        ]
        for result in self.failures[:MAX_SHOWN]:
            lines.append(f"seed {result.seed}: {result.failure}")
            lines.append(f"    replay it with: make simulate SEED={result.seed}")
        return lines

    def _describe_heal(self) -> str:
        heal = sorted(self.heal_ms) or [0]
        p50, p99 = heal[len(heal) // 2], heal[len(heal) * 99 // 100]
        per_history_ms = 1000 * self.seconds / max(self.histories, 1)
        return (
            f"healed in {p50:,} ms (p50), {p99:,} ms (p99), {heal[-1]:,} ms (longest) of virtual "
            f"time; {self.seconds:.0f} s of work, {per_history_ms:.0f} ms per history"
        )


def run_many(seeds: Iterable[int], progress: Callable[[int], None] = lambda done: None) -> Report:
    """Run the histories of `seeds` on all cores. Their order does not depend on the cores."""
    chunks = _split(list(seeds))
    report = Report()
    # Spawned, not forked: the parent may have threads, and the tables are built within a second.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for results in pool.map(_run_chunk, chunks):
            for result in results:
                report.add(result)
            progress(report.histories)
    return report


def _split(seeds: list[int]) -> list[list[int]]:
    return [seeds[i : i + CHUNK] for i in range(0, len(seeds), CHUNK)]


def _run_chunk(seeds: list[int]) -> list[Result]:
    return [run_history(draw_plan(seed)) for seed in seeds]
