"""Processor time of a process and everything it started. Linux only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from scripts.bench_figures.measure import read_cpu_s

PROC: Final = Path("/proc")
PARENT, DEAD_USER, DEAD_SYSTEM = 1, 13, 14
"""Fields of /proc/PID/stat, counted from the one after the name."""


def read_tree_cpu_s(pid: int) -> float:
    """Of the process, of its children and of theirs, those that have ended included."""
    parents = {child: fields[PARENT] for child, fields in _read_all().items()}
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(_read_one(member) for member in family)


def _read_all() -> dict[int, list[int]]:
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(folder.name)] = _read_fields(folder)
    return found


def _read_one(pid: int) -> float:
    try:
        fields = _read_fields(PROC / str(pid))
        ended = (fields[DEAD_USER] + fields[DEAD_SYSTEM]) / os.sysconf("SC_CLK_TCK")
        return read_cpu_s(pid) + ended
    except OSError:  # it has ended between
        return 0.0


def _read_fields(folder: Path) -> list[int]:
    """Numbers after the name, which may hold anything; its state counts as 0."""
    _state, *numbers = (folder / "stat").read_text().rpartition(")")[2].split()
    return [0, *map(int, numbers)]
