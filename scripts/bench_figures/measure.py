"""Rows of the table, and how rates are measured: interleaved slices of time, medians.

All rates move with the machine and its neighbours. So what is measured and what it is compared
with take turns in short slices, and a row states the ratio of their medians beside the value.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import msgspec

MICROS = 1_000_000
MIB = 1 << 20
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much one run measures."""

    folder: Path
    """Where files are made: on the disk whose speed counts."""
    rounds: int
    """How often everything takes its turn."""
    slice_s: float
    """Length of one turn of an in-process figure."""
    load_s: float
    """Length of one turn of the job load."""
    receipts: int
    """Length of the generated chain."""
    synced: int
    """Receipts of the chain that is synced."""
    visits: int
    """Requests of each page in one round."""
    finals: int
    """Jobs whose way to finality is timed."""
    attackers: int
    """Hostile clients at once."""
    crowd: int
    """Clients that follow events at once."""
    crowd_s: float
    """How long the crowd stays after the work."""
    followers: int
    """The most clients that follow one job at once."""


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the table."""

    figure: str
    value: float
    unit: str
    p99: float | None = None
    """In the same unit, where `value` is a median of single times."""
    reference: str = ""
    reference_value: float | None = None
    """Measured in the same run, in the same unit."""
    goal: str = ""
    cpu_micros: float | None = None
    """Processor time of one operation; of the server's process where there is one."""

    @property
    def ratio(self) -> float | None:
        """Value by reference."""
        return self.value / self.reference_value if self.reference_value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Medians over all slices of one figure."""

    per_second: float
    cpu_micros: float


Work = Callable[[], int]
"""Does some operations and returns how many."""


def measure_rates(works: Mapping[str, Work], *, rounds: int, slice_s: float) -> dict[str, Rate]:
    """Let all works take turns, each for a slice of time, and return their medians."""
    slices: dict[str, list[Rate]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            slices[name].append(_measure_slice(work, slice_s))
    return {
        name: Rate(
            per_second=median(rate.per_second for rate in rates),
            cpu_micros=median(rate.cpu_micros for rate in rates),
        )
        for name, rates in slices.items()
    }


def _measure_slice(work: Work, slice_s: float) -> Rate:
    count, elapsed, began, cpu_began = 0, 0.0, time.perf_counter(), time.process_time()
    while elapsed < slice_s:
        count += work()
        elapsed = time.perf_counter() - began
    cpu = time.process_time() - cpu_began
    return Rate(per_second=count / elapsed, cpu_micros=cpu * MICROS / count)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def read_cpu_s(pid: int) -> float:
    """Return the processor time of a process of ours, all threads, in seconds. Linux only."""
    # What clock_getcpuclockid(3) returns, which Python does not wrap.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def read_threads_s(pid: int) -> dict[str, float]:
    """Return the processor time of each thread of a process, by name, in seconds. Linux only.

    The first thread is `main`, names have 15 bytes, those of one name count together, and one that
    ends meanwhile is left out.
    """
    times: dict[str, float] = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            name = "main" if thread.name == str(pid) else (thread / "comm").read_text().strip()
            nanoseconds = int((thread / "schedstat").read_text().split()[0])
            times[name] = times.get(name, 0) + nanoseconds / 1e9
    return times


def read_memory(pid: int, field: str) -> int:
    """Return a figure of a process' memory in bytes, as /proc names it. Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc tells no {field}")


def describe_machine() -> str:
    """Return in one line what the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} x {model}, load {load:.1f} before the run"
