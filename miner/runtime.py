"""A Llama-family ONNX model in genai layout, on ONNX Runtime, over slots of key-value cache.

The cache is one slab per layer of shape (slots, kv_heads, context, head_size). Past and present
are bound to the same memory, so a step writes its keys in place and nothing is copied. A slot is
one contiguous part of each slab: one slot can be prefilled by itself, and any run of
neighbouring slots can be stepped together as the rows of one batch, each with its own length.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from miner.errors import ModelError, ModelFormatError, UnsupportedModelError
from miner.models.graph import IR_VERSION, OPSET
from miner.tokenizer import read_json

log = logging.getLogger(__name__)

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"
PREFILL_CHUNK: Final = 128
"""Tokens per prefill run: bounds its working memory and the time until a cancel is seen."""
MAX_LAYERS: Final = 1_024
ERRORS_ONLY: Final = 3
_Float: TypeAlias = np.float16 | np.float32
_DTYPES: Final[dict[str, type[_Float]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What genai_config.json says, checked."""

    file: Path
    layers: int
    context: int
    eos_token_ids: frozenset[int]
    input_ids: str
    attention_mask: str
    position_ids: str
    past_names: tuple[str, ...]
    """Keys then values, layer by layer; in the order of `present_names`."""
    present_names: tuple[str, ...]
    logits: str


def read_config(directory: Path) -> ModelConfig:
    """Read genai_config.json.

    Raises:
        ModelFormatError: missing or malformed.
        UnsupportedModelError: a cache that cannot be shared between past and present.
    """
    path = directory / "genai_config.json"
    content = read_json(path)
    try:
        model, decoder = content["model"], content["model"]["decoder"]
        inputs, outputs = decoder["inputs"], decoder["outputs"]
        layers = int(decoder["num_hidden_layers"])
        if not 1 <= layers <= MAX_LAYERS:
            raise ModelFormatError(f"{path}: {layers} layers")
        eos = model["eos_token_id"]
        shared = content.get("search", {}).get("past_present_share_buffer", True)
        if not shared:
            raise UnsupportedModelError(f"{path}: past and present do not share a buffer")
        return ModelConfig(
            file=directory / Path(decoder["filename"]).name,
            layers=layers,
            context=int(model["context_length"]),
            eos_token_ids=frozenset(map(int, eos if isinstance(eos, list) else [eos])),
            input_ids=str(inputs["input_ids"]),
            attention_mask=str(inputs["attention_mask"]),
            position_ids=str(inputs.get("position_ids", "position_ids")),
            past_names=_layer_names(inputs, "past_key_names", "past_value_names", layers),
            present_names=_layer_names(outputs, "present_key_names", "present_value_names", layers),
            logits=str(outputs["logits"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFormatError(f"{path}: not a decoder description: {error!r}") from error


def _layer_names(faces: dict[str, str], key: str, value: str, layers: int) -> tuple[str, ...]:
    return tuple(faces[face] % layer for layer in range(layers) for face in (key, value))


class LlamaRuntime:
    """One loaded model. Not thread-safe: one thread runs it."""

    def __init__(
        self,
        directory: Path,
        *,
        threads: int,
        context: int,
        slots: int = 1,
        allow_cuda: bool = True,
    ) -> None:
        """Load the model and allocate its cache, which holds `slots` times `context` tokens.

        Raises:
            ModelError: the model cannot be loaded or is not of this family.
        """
        self.config = read_config(directory)
        self.context = min(context, self.config.context)
        self.slots = slots
        self._session = _open_session(self.config.file, threads, allow_cuda=allow_cuda)
        self.provider: str = self._session.get_providers()[0]
        faces = {face.name: face for face in self._session.get_inputs()}
        self._check_faces(faces)
        first = faces[self.config.past_names[0]]
        _, heads, _, size = first.shape
        self._dtype = _DTYPES[first.type]
        self._slab_shape = (slots, heads, self.context, size)
        self._device = _cache_device(self.provider, self._dtype)
        self._slabs = [self._allocate() for _ in self.config.past_names]
        self._has_positions = self.config.position_ids in faces
        logits = next(o for o in self._session.get_outputs() if o.name == self.config.logits)
        self.vocabulary = int(logits.shape[-1])
        self._logits_dtype = _DTYPES[logits.type]
        self._bindings: dict[tuple[int, int, bool], Any] = {}

    def prefill(self, token_ids: Sequence[int], *, slot: int, start: int) -> None:
        """Put tokens into a slot's cache from position `start` on, for no logits.

        At most PREFILL_CHUNK tokens a call.
        """
        ids = np.array([token_ids], np.int64)
        self._run(ids, slot, [start + len(token_ids)], logits=None)

    def step(
        self, token_ids: Sequence[int], lengths: Sequence[int], *, first_slot: int = 0
    ) -> NDArray[np.float32]:
        """One token for each of the neighbouring slots from `first_slot` on.

        Args:
            token_ids: one per slot.
            lengths: tokens in each slot after this step.
            first_slot: the slot of the first row.

        Returns:
            Logits, shape (rows, vocabulary); overwritten by no later call.
        """
        ids = np.array(token_ids, np.int64)[:, None]
        logits: NDArray[_Float] = np.empty((len(ids), 1, self.vocabulary), self._logits_dtype)
        self._run(ids, first_slot, lengths, logits=logits)
        scores: NDArray[np.float32] = logits[:, 0].astype(np.float32, copy=False)
        return scores

    def score(
        self, token_ids: Sequence[int], *, slot: int = 0, start: int = 0
    ) -> NDArray[np.float32]:
        """Logits after every token of a chunk, in one run.

        Args:
            token_ids: the chunk; scoring a long text chunk by chunk bounds the logits' memory.
            slot: holds the `start` tokens before the chunk already, and takes the chunk.
            start: position of the chunk's first token.

        Returns:
            Shape (tokens, vocabulary); overwritten by no later call.
        """
        ids = np.array([token_ids], np.int64)
        shape = (1, len(token_ids), self.vocabulary)
        logits: NDArray[_Float] = np.empty(shape, self._logits_dtype)
        self._run(ids, slot, [start + len(token_ids)], logits=logits)
        scores: NDArray[np.float32] = logits[0].astype(np.float32, copy=False)
        return scores

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` cached tokens of `source`, as if prefilled there.

        What `target` held before is lost, whatever its length.
        """
        if not (0 <= source < self.slots and 0 <= target < self.slots):
            raise AssertionError(f"slots {source} to {target}: outside the cache")
        if not 0 <= length <= self.context:
            raise AssertionError(f"{length} tokens: outside the cache")
        if source == target or length == 0:
            return
        for slab in self._slabs:
            if self._device == "cpu":
                memory = slab.numpy()  # a view
                memory[target, :, :length] = memory[source, :, :length]
            else:
                self._device_copier.copy(self._place(slab, source), self._place(slab, target))

    def _run(
        self,
        ids: NDArray[np.int64],
        first_slot: int,
        lengths: Sequence[int],
        *,
        logits: NDArray[_Float] | None,
    ) -> None:
        rows, added = ids.shape
        longest = max(lengths)
        if longest > self.context or first_slot + rows > self.slots or min(lengths) < added:
            raise AssertionError(f"rows {first_slot}+{rows}, lengths {lengths}: outside the cache")
        ends = np.array(lengths, np.int64)[:, None]
        binding = self._binding(first_slot, rows, with_logits=logits is not None)
        mask = (np.arange(longest) < ends).astype(np.int64)
        binding.bind_cpu_input(self.config.input_ids, ids)
        binding.bind_cpu_input(self.config.attention_mask, mask)
        if self._has_positions:
            positions = ends - added + np.arange(added)
            binding.bind_cpu_input(self.config.position_ids, positions)
        if logits is not None:
            binding.bind_output(
                self.config.logits, "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data
            )
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # the runtime raises bare Exceptions of its own
            raise ModelError(f"the model failed while running: {error}") from error

    def _binding(self, first_slot: int, rows: int, *, with_logits: bool) -> Any:
        """The cache's memory bound as past and present of these slots, kept between steps."""
        key = (first_slot, rows, with_logits)
        if key not in self._bindings:
            binding = self._session.io_binding()
            shape = (rows, *self._slab_shape[1:])
            names = zip(self.config.past_names, self.config.present_names, self._slabs, strict=True)
            for past, present, slab in names:
                place = (self._device, 0, self._dtype, shape, self._place(slab, first_slot))
                binding.bind_input(past, *place)
                binding.bind_output(present, *place)
            self._bindings[key] = binding
        return self._bindings[key]

    @functools.cached_property
    def _device_copier(self) -> DeviceCopier:
        return DeviceCopier(
            self.provider,
            device=self._device,
            dtype=self._dtype,
            values=math.prod(self._slab_shape[1:]),
        )

    def _place(self, slab: Any, slot: int) -> int:
        """The address of a slot's part of a slab."""
        slot_bytes = math.prod(self._slab_shape[1:]) * np.dtype(self._dtype).itemsize
        return int(slab.data_ptr()) + slot * slot_bytes

    def _allocate(self) -> Any:
        if self._device == "cpu":
            # calloc: pages cost memory only once tokens reach them.
            zeros = np.zeros(self._slab_shape, self._dtype)
            return ort.OrtValue.ortvalue_from_numpy(zeros)
        return ort.OrtValue.ortvalue_from_shape_and_type(
            self._slab_shape, self._dtype, self._device, 0
        )

    def _check_faces(self, faces: dict[str, Any]) -> None:
        known = {
            self.config.input_ids,
            self.config.attention_mask,
            self.config.position_ids,
            *self.config.past_names,
        }
        needed = known - {self.config.position_ids}
        outputs = {face.name for face in self._session.get_outputs()}
        missing = sorted(needed - faces.keys())
        missing += sorted({self.config.logits, *self.config.present_names} - outputs)
        unknown = sorted(faces.keys() - known)
        if missing or unknown:
            raise UnsupportedModelError(
                f"{self.config.file}: missing {missing[:3]}, unknown inputs {unknown[:3]}"
            )
        past = faces[self.config.past_names[0]]
        if past.type not in _DTYPES or len(past.shape) != 4:
            raise UnsupportedModelError(f"{self.config.file}: cache of {past.type} {past.shape}")


class DeviceCopier:
    """Copies memory of a device within it, which the runtime's interface has no call for.

    A graph of one Identity does it: all of a slot, since what is copied must lie in one piece.
    """

    def __init__(self, provider: str, *, device: str, dtype: type[_Float], values: int) -> None:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        source, target = (helper.make_tensor_value_info(name, kind, [values]) for name in "st")
        graph = helper.make_graph(
            [helper.make_node("Identity", ["s"], ["t"])], "copy", [source], [target]
        )
        model = helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
        )
        self._session = ort.InferenceSession(model.SerializeToString(), providers=[provider])
        self._place = (device, 0, dtype, (values,))

    def copy(self, source: int, target: int) -> None:
        """Copy from one address to another."""
        binding = self._session.io_binding()
        binding.bind_input("s", *self._place, source)
        binding.bind_output("t", *self._place, target)
        self._session.run_with_iobinding(binding)


def _open_session(file: Path, threads: int, *, allow_cuda: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ERRORS_ONLY
    # Spinning threads would take the processor from the node that runs beside the miner.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    asked = [CPU]
    if allow_cuda and CUDA in ort.get_available_providers():
        # This build can use a GPU; whether the machine has one shows only when a session opens.
        if _cuda_device_is_there():
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it cannot find
                ort.preload_dlls()
            asked = [CUDA, CPU]
        else:
            log.info("no NVIDIA GPU on this machine: the model runs on the CPU")
    try:
        session = ort.InferenceSession(str(file), options, providers=asked)
    except Exception as error:  # the runtime raises bare Exceptions of its own
        raise ModelError(f"{file}: cannot be loaded: {error}") from error
    got = session.get_providers()
    if got[0] != asked[0]:
        log.warning(
            "asked for %s, but the runtime gave %s: the model runs on the CPU; "
            '"make setup GPU=1" installs the CUDA libraries',
            asked[0],
            got[0],
        )
    else:
        log.info("the model runs on %s with %d threads", got[0], threads)
    return session


def _cuda_device_is_there() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _cache_device(provider: str, dtype: type[_Float]) -> str:
    """GroupQueryAttention runs on CUDA in half precision only; its cache lives where it runs."""
    return "cuda" if provider == CUDA and dtype is np.float16 else "cpu"
