"""NVIDIA GPUs as their driver describes them, through NVML.

CUDA counts the GPUs that CUDA_VISIBLE_DEVICES leaves visible, NVML counts all. Both count by PCI
bus, since `miner.runtime.device` asks CUDA to.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from miner.errors import NoCudaError

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Nvml(Protocol):
    """What is used of the module pynvml."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: D102, N802
    def nvmlShutdown(self) -> None: ...  # noqa: D102, N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: D102, N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: D102, N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: D102, N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: D102, N802


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as it was when it was read."""

    name: str
    driver: str
    total_bytes: int
    free_bytes: int

    @property
    def public_info(self) -> dict[str, str]:
        """What a miner tells a node about it."""
        return {"name": self.name, "memory": f"{self.total_bytes >> 20} MiB"}


def load_nvml() -> Nvml | None:
    """NVML's module; None where it is not installed, as on platforms without NVIDIA's drivers."""
    try:
        return cast("Nvml", importlib.import_module("pynvml"))
    except ImportError:
        return None


def read_gpu(index: int, environment: Mapping[str, str], nvml: Nvml | None) -> Gpu | None:
    """Describe a GPU.

    Args:
        index: as CUDA counts those that this process may see.
        environment: of this process.
        nvml: see `load_nvml`.

    Returns:
        None if the driver cannot be asked.

    Raises:
        NoCudaError: there is no such GPU.
    """
    if nvml is None:
        return None
    try:
        with _session(nvml):
            handle = _find(index, environment, nvml)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            return Gpu(
                name=str(nvml.nvmlDeviceGetName(handle)),
                driver=str(nvml.nvmlSystemGetDriverVersion()),
                total_bytes=int(memory.total),
                free_bytes=int(memory.free),
            )
    except nvml.NVMLError as error:
        log.warning("the NVIDIA driver cannot be asked: %s", error)
        return None


@contextmanager
def _session(nvml: Nvml) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _find(index: int, environment: Mapping[str, str], nvml: Nvml) -> Any:
    handles = [nvml.nvmlDeviceGetHandleByIndex(at) for at in range(nvml.nvmlDeviceGetCount())]
    visible = handles
    if VISIBLE in environment:
        names = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        visible = [handles[at] for at in _visible(environment[VISIBLE], names)]
    if not 0 <= index < len(visible):
        hint = f", of {len(handles)} that {VISIBLE} hides" if len(visible) < len(handles) else ""
        raise NoCudaError(f"there is no GPU {index}: this process sees {len(visible)}{hint}")
    return visible[index]


def _visible(setting: str, names: list[str]) -> list[int]:
    """Indices of GPUs that CUDA shows: numbers or beginnings of UUIDs, up to the first unknown."""
    visible: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal():
            found = [int(entry)] if int(entry) < len(names) else []
        else:
            found = [at for at, name in enumerate(names) if entry and name.startswith(entry)]
        if len(found) != 1 or found[0] in visible:
            break
        visible += found
    return visible
