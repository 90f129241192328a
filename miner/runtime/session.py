"""Opening a model on ONNX Runtime: on which provider, and with which graph."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from miner.errors import ModelError, NoCudaError
from miner.models.layout import data_files
from miner.models.onnx_file import OnnxFile, read_onnx
from miner.runtime.config import ModelConfig
from miner.runtime.graph import SHARING, GraphFacts, cut_before_head, inspect_graph

log = logging.getLogger(__name__)

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"
ERRORS_ONLY: Final = 3
INSTALL_CUDA: Final = '"make setup GPU=1" installs the CUDA libraries'
_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
ProviderChoice = Literal["auto", "cpu", "cuda"]
Float: TypeAlias = np.float16 | np.float32
"""What caches and logits are made of."""
FLOATS: Final[dict[str, type[Float]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


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

    def __str__(self) -> str:
        return f"GPU {self.index} ({CUDA})" if self.provider == CUDA else f"the CPU ({CPU})"

    @property
    def options(self) -> dict[str, str]:
        """Memory grows by what is needed, and sums are kept in full precision."""
        if self.provider != CUDA:
            return {}
        return {
            "device_id": str(self.index),
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
            "enable_skip_layer_norm_strict_mode": "1",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A loaded model."""

    session: Any
    device: Device
    facts: GraphFacts
    cuts_head: bool
    """Whether the graph has the input FIRST_ROW."""


def open_model(
    config: ModelConfig, *, threads: int, provider: ProviderChoice, gpu: int, cut_head: bool = True
) -> OpenModel:
    """Load a model.

    Args:
        config: what to load.
        threads: of the CPU.
        provider: auto takes the GPU if there is one that runs this model, and says what it took.
        gpu: which one, as CUDA counts those that this process may see.
        cut_head: whether the graph may be changed so that prefill skips the head.

    Raises:
        ModelError: damaged, incomplete or of another kind.
        NoCudaError: CUDA was asked for, and is not to be had; it says what is missing.
    """
    content = read_onnx(config.file)
    data_files(config.file)
    facts = inspect_graph(content.model, config)
    cuts_head = cut_head and cut_before_head(content.model, config.logits)
    if cut_head and not cuts_head:
        log.info("%s: its head was not recognised, so prefill computes it too", config.file)
    source = _Source(content, threads)
    session, device = _open_on_any(source, facts, provider, gpu)
    log.info("%s runs on %s with %d threads", config.file, device, threads)
    return OpenModel(session=session, device=device, facts=facts, cuts_head=cuts_head)


def cuda_device_is_there() -> bool:
    """Whether the driver shows this process a GPU."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


@dataclass(frozen=True, slots=True)
class _Source:
    content: OnnxFile
    threads: int


def _open_on_any(
    source: _Source, facts: GraphFacts, provider: ProviderChoice, gpu: int
) -> tuple[Any, Device]:
    cpu, cuda = Device(provider=CPU), Device(provider=CUDA, index=gpu)
    if provider == "cpu":
        return _open(source, cpu), cpu
    try:
        return _open_on_cuda(source, facts, cuda), cuda
    except NoCudaError as error:
        if provider == "cuda":
            raise
        level = logging.WARNING if cuda_device_is_there() else logging.INFO
        log.log(level, "%s", error)
        return _open(source, cpu), cpu


def _open_on_cuda(source: _Source, facts: GraphFacts, device: Device) -> Any:
    """A session that is known to run on the GPU: a runtime that has none falls back silently."""
    file = source.content.path
    if CUDA not in ort.get_available_providers():
        raise NoCudaError(
            f"{file}: this ONNX Runtime has no CUDA; Linux on x86-64 has one that does"
        )
    if not cuda_device_is_there():
        raise NoCudaError(f"{file}: there is no NVIDIA GPU on this machine, or no driver for it")
    if facts.shares_cache and facts.cache_kind == TensorProto.FLOAT:
        raise NoCudaError(f"{file}: CUDA computes attention in half precision only, not in float32")
    _load_cuda()
    try:
        session = _open(source, device)
    except ModelError as error:
        raise NoCudaError(f"{error}; {INSTALL_CUDA}") from error
    if session.get_providers()[0] != CUDA:
        raise NoCudaError(f"{file}: ONNX Runtime could not start CUDA; {INSTALL_CUDA}")
    for part in session.get_provider_graph_assignment_info():
        kinds = {node.op_type for node in part.get_nodes()}
        log.info("%s: %d nodes on %s", file, len(part.get_nodes()), part.ep_name)
        if part.ep_name != CUDA and SHARING in kinds:
            raise NoCudaError(f"{file}: ONNX Runtime put its attention on {part.ep_name}")
    return session


def _open(source: _Source, device: Device) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = source.threads
    options.log_severity_level = ERRORS_ONLY
    # Spinning threads would take the processor from the node that runs beside the miner.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The graph comes from memory, its weights from the files of the model.
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(source.content.path.parent.resolve()))
    providers: list[Any] = [CPU]
    if device.provider == CUDA:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = [(CUDA, device.options), CPU]
    try:
        session = ort.InferenceSession(
            source.content.serialize(), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # the runtime raises bare Exceptions of its own
        raise ModelError(f"{source.content.path}: cannot be loaded: {error}") from error
    # It would keep the graph, with the weights in it, for a reset that nobody asks for.
    session._model_bytes = None  # noqa: SLF001
    return session


def _load_cuda() -> None:
    # GPUs are counted as nvidia-smi and NVML count them, not by their speed.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
        ort.preload_dlls()
