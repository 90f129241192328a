"""Collects an ONNX graph and streams its large tensors into the data file beside the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

MICROSOFT: Final = "com.microsoft"
DATA_FILE: Final = "model.onnx.data"
INLINE_BYTES: Final = 1_024
"""Tensors up to this size stay inside model.onnx."""
ALIGNMENT: Final = 4_096
"""Offsets in the data file are whole pages, so that a runtime can map them."""
OPSET: Final = 18
IR_VERSION: Final = 9


class GraphWriter:
    """Collects nodes; puts large tensors into the data file as they come."""

    def __init__(self, data_file: BinaryIO) -> None:
        self._data_file = data_file
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, values: NDArray[Any], data_type: int | None = None) -> str:
        """Store a tensor and return its name; `data_type` if numpy lacks the ONNX type."""
        known = data_type or helper.np_dtype_to_tensor_dtype(values.dtype)
        return self.stream(name, values.shape, known, values.nbytes, [values])

    def stream(
        self,
        name: str,
        shape: tuple[int, ...],
        data_type: int,
        size_bytes: int,
        chunks: Iterable[NDArray[Any]],
    ) -> str:
        """Store a tensor that comes in parts, first rows first, and return its name."""
        tensor = TensorProto(name=name, dims=shape, data_type=data_type)
        if size_bytes <= INLINE_BYTES:
            tensor.raw_data = b"".join(np.ascontiguousarray(chunk).tobytes() for chunk in chunks)
        else:
            self._data_file.write(bytes(-self._data_file.tell() % ALIGNMENT))
            place = {"location": DATA_FILE, "offset": self._data_file.tell(), "length": size_bytes}
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            for chunk in chunks:
                self._data_file.write(np.ascontiguousarray(chunk).data)
        self._tensors.append(tensor)
        return name

    def node(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        **attributes: Any,
    ) -> str:
        """Append a node and return the name of its first output."""
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, name=outputs[0] + "/node", **attributes)
        )
        return outputs[0]

    def contrib(
        self,
        operator: str,
        inputs: list[str],
        outputs: list[str],
        **attributes: Any,
    ) -> str:
        """As `node`, of ONNX Runtime's own operators."""
        return self.node(operator, inputs, outputs, domain=MICROSOFT, **attributes)

    def serialize(self) -> bytes:
        """The model file, the same bytes for the same calls."""
        graph = helper.make_graph(
            self._nodes, "llama", self.inputs, self.outputs, initializer=self._tensors
        )
        model = helper.make_model(
            graph,
            producer_name="aitbc",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
        )
        serialized: bytes = model.SerializeToString(deterministic=True)
        return serialized
