"""Steps on a GPU: what goes in and comes out keeps its place there, and the kernels go as one.

A step is hundreds of kernels, and launching one takes longer than most of them run. CUDA can record
what a run launches and replay it as one, if nothing but the contents of memory has changed. So
steps take few shapes: their rows are blocks of a power of two, their masks as wide as one, and each
shape has memory of its own for what goes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from miner.rows import BLOCK, PeakedRows
from miner.runtime.binding import Binding
from miner.runtime.cache import SharedCache
from miner.runtime.config import ModelConfig
from miner.runtime.device import CUDA, Device
from miner.runtime.faces import FLOATS, INTEGERS, KEPT_ROWS
from miner.runtime.graph import FIRST_ROW, PEAKS, SHARPNESS, TOTALS
from miner.runtime.session import is_recording

LEAST_WIDTH: Final = 256
"""Tokens of the narrowest mask."""
MAX_RECORDED: Final = 128
"""What is recorded takes memory of the device, and is never given back before the session's end."""


def looks_on(device: Device) -> bool:
    """Whether steps are worth this on a device: where the host is slow beside it."""
    return device.provider == CUDA


def widen(span: range, slots: int) -> range:
    """The smallest block of a power of two of slots around some; at the end it may be cut."""
    size = 1
    while span.stop > span.start // size * size + size:
        size *= 2
    start = span.start // size * size
    return range(start, min(start + size, slots))


class DeviceSteps:
    """Steps of one session."""

    def __init__(
        self,
        session: Any,
        config: ModelConfig,
        device: Device,
        cache: SharedCache,
        *,
        vocabulary: int,
        context: int,
    ) -> None:
        """Allocate nothing yet.

        Args:
            session: of a graph that tells its peaks.
            config: of the model.
            device: that the session was opened on.
            cache: of its slots.
            vocabulary: ids of a row.
            context: tokens of a slot.
        """
        self._session = session
        self._config = config
        self._device = device
        self._cache = cache
        self._context = context
        faces = {face.name: face for face in session.get_inputs()}
        self._inputs: dict[str, type[Any]] = {
            name: INTEGERS[faces[name].type]
            for name in (config.input_ids, config.attention_mask, config.position_ids)
            if name in faces
        }
        self._inputs[SHARPNESS] = np.float32
        self._fixed = {
            name: np.array(value, INTEGERS[faces[name].type])
            for name, value in ((FIRST_ROW, [0]), (KEPT_ROWS, 0))
            if name in faces
        }
        logits = next(face for face in session.get_outputs() if face.name == config.logits)
        blocks = -(-vocabulary // BLOCK)
        self._outputs: dict[str, tuple[type[Any], tuple[int, ...]]] = {
            config.logits: (FLOATS[logits.type], (1, vocabulary)),
            PEAKS: (np.float32, (1, blocks)),
            TOTALS: (np.float32, (1,)),
        }
        self.records = device.provider == CUDA and is_recording(session)
        """Whether steps are recorded and replayed."""
        self._places: dict[tuple[int, int, int], _Place] = {}
        self._results: dict[int, dict[str, Any]] = {}

    def run(
        self,
        token_ids: Sequence[int],
        lengths: Sequence[int],
        temperatures: Sequence[float],
        first_slot: int,
    ) -> PeakedRows:
        """One token for each of the neighbouring slots; see `LlamaRuntime.look`.

        Raises:
            ModelError: the run failed.
        """
        config, ends = self._config, np.array(lengths)[:, None]
        place = self._find_place(first_slot, len(token_ids), self._width(max(lengths)))
        place.write(config.input_ids, np.array(token_ids)[:, None])
        place.write(config.attention_mask, np.arange(place.width) < ends)
        if config.position_ids in self._inputs:
            place.write(config.position_ids, ends - 1)
        place.write(SHARPNESS, 1 / np.array(temperatures)[:, None, None])
        place.binding.run()
        results = self._results[len(token_ids)]
        logits, peaks, totals = (results[name].numpy()[:, 0] for name in self._outputs)
        return PeakedRows(logits, peaks, totals, temperatures)

    def _width(self, longest: int) -> int:
        width = LEAST_WIDTH
        while width < longest:
            width *= 2
        return min(width, self._context)

    def _find_place(self, first_slot: int, rows: int, width: int) -> _Place:
        key = (first_slot, rows, width)
        place = self._places.get(key)
        if place is None:
            has_room = len(self._places) < MAX_RECORDED
            place = self._open_place(
                first_slot, rows, width, len(self._places) if self.records and has_room else None
            )
            if has_room:
                self._places[key] = place
        return place

    def _open_place(self, first_slot: int, rows: int, width: int, recording: int | None) -> _Place:
        binding = Binding(self._session, self._device, recording=recording)
        io = binding.io
        self._cache.bind(io, first_slot, rows)
        for name, value in self._fixed.items():
            io.bind_cpu_input(name, value)
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self._inputs, (rows, 1))
        shapes |= {self._config.attention_mask: (rows, width), SHARPNESS: (rows, 1, 1)}
        inputs = {name: self._allocate(shapes[name], dtype) for name, dtype in self._inputs.items()}
        for name, value in inputs.items():
            io.bind_ortvalue_input(name, value)
        if rows not in self._results:
            self._results[rows] = {
                name: self._allocate((rows, *shape), dtype)
                for name, (dtype, shape) in self._outputs.items()
            }
        for name, value in self._results[rows].items():
            io.bind_ortvalue_output(name, value)
        return _Place(binding=binding, width=width, inputs=inputs, dtypes=self._inputs)

    def _allocate(self, shape: tuple[int, ...], dtype: type[Any]) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(
            shape, dtype, self._device.name, self._device.index
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """What steps of one shape are bound to."""

    binding: Binding
    width: int
    """Of the mask, in tokens."""
    inputs: Mapping[str, Any]
    dtypes: Mapping[str, type[Any]]

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Give an input its values."""
        self.inputs[name].update_inplace(np.ascontiguousarray(values, self.dtypes[name]))
