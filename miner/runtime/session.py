"""Opening a model on ONNX Runtime, with its graph as the runtime wants it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime as ort
from onnx import TensorProto

from miner.errors import ModelError, NoCudaError
from miner.models.layout import data_files
from miner.models.onnx_file import OnnxFile, read_onnx
from miner.runtime.config import ModelConfig
from miner.runtime.device import CUDA, ERRORS_ONLY, RECORDS, Device
from miner.runtime.graph import SHARING, GraphFacts, cut_before_head, inspect_graph

log = logging.getLogger(__name__)

_WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model's graph, ready to be opened."""

    content: OnnxFile
    facts: GraphFacts
    cuts_head: bool
    """Whether the graph got the input FIRST_ROW."""
    weights_bytes: int
    """Of the ONNX file and its data files."""

    @property
    def unfit_for_cuda(self) -> str | None:
        """Why it cannot run on a GPU, if that can be seen."""
        if self.facts.shares_cache and self.facts.cache_kind == TensorProto.FLOAT:
            return f"{self.content.path}: on CUDA attention is in half precision, not in float32"
        return None


def read_source(config: ModelConfig, *, cut_head: bool = True) -> ModelSource:
    """Read a model's graph, and let prefill skip its head if it is understood.

    Raises:
        ModelError: damaged, incomplete or of another kind.
    """
    content = read_onnx(config.file)
    files = [config.file, *data_files(config.file)]
    facts = inspect_graph(content.model, config)
    cuts_head = cut_head and cut_before_head(content.model, config.logits)
    if cut_head and not cuts_head:
        log.info("%s: its head was not recognised, so prefill computes it too", config.file)
    return ModelSource(
        content=content,
        facts=facts,
        cuts_head=cuts_head,
        weights_bytes=sum(file.stat().st_size for file in files),
    )


def open_session(
    source: ModelSource, device: Device, *, threads: int, records: bool = False
) -> Any:
    """Load a model.

    Args:
        source: read by `read_source`.
        device: what runs it.
        threads: of the CPU.
        records: whether runs shall be recorded and replayed on a GPU. `is_recording` tells whether
            they can be: not if part of the graph runs elsewhere.

    Raises:
        ModelError: it cannot be loaded.
        NoCudaError: it would not run on the GPU it was opened on.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    # Spinning threads would take the processor from the node that runs beside the miner.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The graph comes from memory, its weights from the files of the model.
    folder = source.content.path.parent.resolve()
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(
            source.content.serialize(),
            options,
            providers=device.providers(records=records),
            enable_fallback=0,
        )
    except Exception as error:  # the runtime raises bare Exceptions of its own
        if records:
            log.warning("%s: its steps are not recorded: %.300s", source.content.path, error)
            return open_session(source, device, threads=threads)
        raise ModelError(f"{source.content.path}: cannot be loaded: {error}") from error
    # It would keep the graph, with the weights in it, for a reset that nobody asks for.
    session._model_bytes = None  # noqa: SLF001
    _check_assignment(source, session, device)
    return session


def is_recording(session: Any) -> bool:
    """Whether a session's runs can be recorded and replayed."""
    return bool(session.get_provider_options().get(CUDA, {}).get(RECORDS) == "1")


def _check_assignment(source: ModelSource, session: Any, device: Device) -> None:
    """Say what runs where, and refuse a cache on a GPU whose attention is elsewhere."""
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(nodes)
        if device.provider == CUDA != part.ep_name and any(n.op_type == SHARING for n in nodes):
            raise NoCudaError(f"{source.content.path}: its attention was put on {part.ep_name}")
    log.info("%s runs on %s; nodes: %s", source.content.path, device, counts)
