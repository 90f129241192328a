"""What runs a model: the CPU, or one GPU, and an honest answer to which of the two it is.

ONNX Runtime falls back to the CPU silently where CUDA does not start. So a GPU is tried with a
graph of one operator before anything is built on it, and asking for one that is not there is an
error that says what is missing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnxruntime as ort
from onnx import helper

from miner.errors import NoCudaError
from miner.models.graph import IR_VERSION, OPSET

log = logging.getLogger(__name__)

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"
ERRORS_ONLY: Final = 3
RECORDS: Final = "enable_cuda_graph"
"""ONNX Runtime's option."""
INSTALL_CUDA: Final = (
    '"make setup GPU=1" installs the CUDA libraries; the driver, for CUDA 13, is the system\'s'
)
CUDA_FAILURE: Final = re.compile(r"CUDA failure \d+: [^;]*")
"""The part for people in what ONNX Runtime says."""
ProviderChoice = Literal["auto", "cpu", "cuda"]
Float: TypeAlias = np.float16 | np.float32
"""What caches and logits are made of."""

# Below an error it warns at every session on a GPU that nobody registered a plug-in for it.
ort.set_default_logger_severity(ERRORS_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What runs a model."""

    provider: str
    """ONNX Runtime's name."""
    index: int = 0
    """Of the GPU, as CUDA counts those that this process may see."""

    @property
    def name(self) -> str:
        """ONNX Runtime's name of its memory."""
        return "cuda" if self.provider == CUDA else "cpu"

    def providers(self, *, records: bool = False) -> list[Any]:
        """What sessions are opened with: memory grows by need, and sums stay in full precision.

        Args:
            records: whether runs may be recorded and replayed, on a GPU.
        """
        if self.provider != CUDA:
            return [CPU]
        options = {
            "device_id": str(self.index),
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "enable_skip_layer_norm_strict_mode": "1",
            RECORDS: str(int(records)),
        }
        return [(CUDA, options), CPU]

    def __str__(self) -> str:
        return f"GPU {self.index} ({CUDA})" if self.provider == CUDA else f"the CPU ({CPU})"


def choose_device(provider: ProviderChoice, gpu: int, *, unfit: str | None = None) -> Device:
    """The device that was asked for; with auto the GPU if it can be used.

    Args:
        provider: what was asked for.
        gpu: which GPU, as CUDA counts those that this process may see.
        unfit: why the model cannot run on a GPU, if that is known.

    Raises:
        NoCudaError: CUDA was asked for, and cannot be used; it says what is missing.
    """
    if provider == "cpu":
        return Device(provider=CPU)
    try:
        if unfit:
            raise NoCudaError(unfit)  # noqa: TRY301 - one way of telling for all reasons
        device = Device(provider=CUDA, index=gpu)
        _try_cuda(device)
    except NoCudaError as error:
        if provider == "cuda":
            raise
        level = logging.WARNING if cuda_device_is_there() else logging.INFO
        log.log(level, "running on the CPU: %s", error)
        return Device(provider=CPU)
    return device


def cuda_device_is_there() -> bool:
    """Whether the driver shows this process a GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _try_cuda(device: Device) -> None:
    if CUDA not in ort.get_available_providers():
        raise NoCudaError("this ONNX Runtime is built without CUDA, unlike that for x86-64 Linux")
    if not cuda_device_is_there():
        raise NoCudaError("there is no NVIDIA GPU on this machine, or no driver for it")
    # GPUs are counted as nvidia-smi and NVML count them, not by their speed.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
        ort.preload_dlls()
    try:
        session = open_identity(device, np.float32, 1)
    except Exception as error:  # the runtime raises bare Exceptions of its own
        found = CUDA_FAILURE.search(str(error))
        said = found.group().strip() if found else str(error).strip()[-300:]
        raise NoCudaError(f"GPU {device.index} cannot be used: {said}") from error
    if session.get_providers()[0] != CUDA:
        raise NoCudaError(f"ONNX Runtime could not start CUDA; {INSTALL_CUDA}")


def open_identity(device: Device, dtype: type[Float], values: int) -> Any:
    """A session that copies `values` numbers from its input `s` to its output `t`."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    source, target = (helper.make_tensor_value_info(name, kind, [values]) for name in "st")
    node = helper.make_node("Identity", ["s"], ["t"])
    model = helper.make_model(
        helper.make_graph([node], "copy", [source], [target]),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=device.providers(), enable_fallback=0
    )
