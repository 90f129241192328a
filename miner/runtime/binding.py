"""Memory bound to the inputs and outputs of a model's session, and bound anew only if it must be.

A step of a small model leaves nothing but weights in the processor's caches, so whatever is done
around it is done from main memory: binding four inputs takes a hundredth of the step. So an input
of the same shape as in the run before is written where that one was.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from miner.errors import ModelError
from miner.runtime.device import CPU, Device

NOT_RECORDED: Final = -1
"""ONNX Runtime's number for runs that are not recorded, where others are."""


class Binding:
    """Inputs and outputs of one session."""

    def __init__(self, session: Any, device: Device, *, recording: int | None = None) -> None:
        """Bind nothing yet.

        Args:
            session: of the model.
            device: that it was opened on.
            recording: under which the first run is recorded, to be replayed by the next ones;
                None: every run is one of its own.
        """
        self.io = session.io_binding()
        self._session = session
        self._options = None if device.provider == CPU else ort.RunOptions()
        if self._options is not None:
            number = NOT_RECORDED if recording is None else recording
            self._options.add_run_config_entry("gpu_graph_id", str(number))
        # An input for a GPU is copied there when it is bound, and not looked at again.
        self._is_in_place = device.provider == CPU
        self._fed: dict[str, NDArray[Any]] = {}
        # Not kept: logits of a chunk are large, and belong to who asked for them.
        self._taken: Callable[[], NDArray[Any] | None] = lambda: None

    def feed(self, name: str, values: NDArray[Any], dtype: type[Any]) -> None:
        """Give an input its values, as elements of its type."""
        held = self._fed.get(name)
        if self._is_in_place and held is not None and held.shape == values.shape:
            held[...] = values
        else:
            self._fed[name] = np.array(values, dtype, order="C")
            self.io.bind_cpu_input(name, self._fed[name])

    def take(self, name: str, values: NDArray[Any]) -> None:
        """Let the one output that is not part of a cache be written into an array."""
        if not (self._is_in_place and self._taken() is values):
            address = values.ctypes.data
            self.io.bind_output(name, "cpu", 0, values.dtype, values.shape, address)
            self._taken = weakref.ref(values)

    def run(self) -> None:
        """Run the model.

        Raises:
            ModelError: it failed.
        """
        try:
            self._session.run_with_iobinding(self.io, self._options)
        except Exception as error:  # the runtime raises bare Exceptions of its own
            raise ModelError(f"the model failed while running: {error}") from error
