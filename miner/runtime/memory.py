"""Does a model fit: weights, cache and working memory against what is free.

Figures are those of the files and the cache's exact size. What cannot be known before is taken on
the safe side: on a CPU products pack their weights into a second copy, and CUDA takes memory for
itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from miner.errors import MemoryShortError
from miner.runtime.device import CUDA, Device
from miner.runtime.gpu import load_nvml, read_gpu

MIB: Final = 1 << 20
CPU_WORKING_BYTES: Final = 256 * MIB
CUDA_WORKING_BYTES: Final = 1_280 * MIB
"""CUDA's own context and libraries, recorded steps, and what operators need while they run.

On an H100 at work with the embedded model it was 990 MiB; each recorded step takes 1.3 of them.
"""
CPU_COPIES: Final = 2.0
CUDA_COPIES: Final = 1.1
MAX_SMALL_FILE: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a loaded model takes."""

    free_bytes: int
    """On the device, before the model is loaded."""
    fixed_bytes: int
    """Weights and working memory."""
    token_bytes: int
    """Of cache, for one token in one slot."""
    context: int
    """Tokens of a slot."""
    slots: int

    @property
    def needed_bytes(self) -> int:
        """Of everything."""
        return self.fixed_bytes + self.slots * self.context * self.token_bytes

    @property
    def slots_that_fit(self) -> int:
        """With this context."""
        return max(self.free_bytes - self.fixed_bytes, 0) // (self.context * self.token_bytes)

    @property
    def context_that_fits(self) -> int:
        """With these slots."""
        return max(self.free_bytes - self.fixed_bytes, 0) // (self.slots * self.token_bytes)

    def reduced_to_fit(self, least_slots: int) -> MemoryPlan:
        """The same with fewer slots if it does not fit, but no fewer than so many."""
        slots = min(self.slots, max(self.slots_that_fit, least_slots))
        return replace(self, slots=slots)

    def check(self, place: str) -> None:
        """Refuse a plan that does not fit.

        Raises:
            MemoryShortError: with the figures, and what would fit.
        """
        if self.needed_bytes <= self.free_bytes:
            return
        slots, context = self.slots_that_fit, self.context_that_fits
        advice = f"{slots} slots, or a context of {context}, would fit"
        if not context:
            advice = "a smaller model or a larger device is needed"
        raise MemoryShortError(f"not enough memory on {place}: needs {self}; {advice}")

    def __str__(self) -> str:
        return (
            f"{_mib(self.needed_bytes)} of {_mib(self.free_bytes)}: {_mib(self.fixed_bytes)} for "
            f"weights and work, {self.slots} slots of {self.context} tokens, "
            f"{self.token_bytes} bytes a token"
        )


def plan_memory(
    *,
    free_bytes: int,
    weights_bytes: int,
    token_bytes: int,
    context: int,
    slots: int,
    is_cuda: bool,
) -> MemoryPlan:
    """What a model of these sizes takes."""
    copies, working = (
        (CUDA_COPIES, CUDA_WORKING_BYTES) if is_cuda else (CPU_COPIES, CPU_WORKING_BYTES)
    )
    return MemoryPlan(
        free_bytes=free_bytes,
        fixed_bytes=int(weights_bytes * copies) + working,
        token_bytes=token_bytes,
        context=context,
        slots=slots,
    )


def read_free_memory(device: Device) -> int | None:
    """Bytes that are free on a device; None if that cannot be known."""
    if device.provider != CUDA:
        return read_free_ram()
    gpu = read_gpu(device.index, os.environ, load_nvml())
    return gpu.free_bytes if gpu else None


def read_free_ram(root: Path = Path("/")) -> int | None:
    """Bytes that a process may still take, by the kernel and by its control groups.

    None where the kernel is not asked this way.
    """
    free = _read_number(root / "proc/meminfo", "MemAvailable:")
    if free is None:
        return None
    limits = [room for group in _groups(root) if (room := _room_in(group)) is not None]
    return min([free * 1024, *limits])


def _groups(root: Path) -> list[Path]:
    """Directories of this process' control group and of those it is in; version 2 only."""
    base = root / "sys/fs/cgroup"
    lines = _read(root / "proc/self/cgroup").splitlines()
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    inner = PurePosixPath(path.strip().lstrip("/"))
    if ".." in inner.parts:  # of a group outside the namespace
        return [base]
    return [base / part for part in (inner, *inner.parents)]


def _room_in(group: Path) -> int | None:
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    # Files that were read count as used, and give way.
    cached = _read_number(group / "memory.stat", "inactive_file") or 0
    return max(int(limit) - int(used) + cached, 0)


def _read_number(path: Path, name: str) -> int | None:
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(MAX_SMALL_FILE)
    except OSError:
        return ""


def _mib(size: int) -> str:
    return f"{size // MIB:,} MiB"
