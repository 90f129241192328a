"""A converted model in half precision, for GPUs: there GroupQueryAttention takes nothing else.

Scales, norms, rotary tables and all values between nodes become float16, rounded once. The input
of 8-bit products in parts, which makes integer arithmetic exact enough on a CPU, is undone: a GPU
unpacks the weights and multiplies in floats. Quantised weights stay as they are, or are unpacked
once: what a small model's step takes on a GPU is the number of its operators, not its bytes.

The same model gives the same bytes on every machine; rounding to float16 is fixed by IEEE 754.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.graph import ALIGNMENT, DATA_FILE, INLINE_BYTES

_MODEL: Final = "model.onnx"


def write_half_model(source: Path, target: Path, *, unpack: bool = False) -> None:
    """Write a model of this package's converter in half precision into an empty directory.

    Args:
        source: the converted model.
        target: where the variant goes.
        unpack: store the weights of products as float16, one operator each instead of up to five,
            in four times the bytes of 4-bit weights.

    Raises:
        ModelFormatError: not such a model.
        UnsupportedModelError: a weight too large for float16.
        OSError: a file cannot be read or written.
    """
    model = onnx.load(source / _MODEL, load_external_data=False)
    _undo_splits(model)
    if unpack:
        _unpack_products(model, source)
    _drop_unused(model)
    for face in (*model.graph.input, *model.graph.output):
        _halve_face(face)
    for node in model.graph.node:
        _halve_casts(node)
    with (target / DATA_FILE).open("wb") as data_file:
        for tensor in model.graph.initializer:
            _rewrite(tensor, source, data_file)
    (target / _MODEL).write_bytes(model.SerializeToString(deterministic=True))
    for path in sorted(source.iterdir()):
        if path.name not in {_MODEL, DATA_FILE}:
            shutil.copyfile(path, target / path.name)


def _undo_splits(model: ModelProto) -> None:
    """Give 8-bit products their input in one piece, and let them give their sum at once."""
    makers = {name: node for node in model.graph.node for name in node.output}
    users = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        level = next((a for a in node.attribute if a.name == "accuracy_level"), None)
        if node.op_type != "MatMulNBits" or level is None or not level.i:
            continue
        split = _expect(users.get(node.output[0]), {"Split"}, node)
        total = _expect(users.get(split.output[0]), {"Add", "Sum"}, node)
        node.input[0], level.i = _whole_input(node, makers), 0
        node.output[0], total.output[0] = total.output[0], ""


def _whole_input(node: NodeProto, makers: Mapping[str, NodeProto]) -> str:
    """What a product's parts add up to: the last is what the others left of it."""
    joined = _expect(makers.get(node.input[0]), {"Concat"}, node)
    last = _expect(makers.get(joined.input[-1]), {"Reshape"}, node)
    maker = _expect(makers.get(last.input[0]), {"Sub"}, node)
    while maker.op_type == "Sub":  # what is subtracted is another part
        maker = _expect(makers.get(maker.input[0]), {"Sub", "Reshape"}, node)
    value: str = maker.input[0]
    return value


def _expect(found: NodeProto | None, kinds: set[str], of: NodeProto) -> NodeProto:
    if found is None or found.op_type not in kinds:
        expected = " or ".join(sorted(kinds))
        raise ModelFormatError(f"{of.name}: {expected} expected about it: not of this converter")
    return found


def _unpack_products(model: ModelProto, source: Path) -> None:
    """Multiply by unpacked weights: `scale * (code - half) + rest`, rounded once."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    users = {name: node for node in model.graph.node for name in node.input}

    def read(name: str) -> NDArray[Any]:
        tensor = TensorProto()
        tensor.CopyFrom(tensors[name])
        if tensor.data_location == TensorProto.EXTERNAL:
            load_external_data_for_tensor(tensor, str(source))
        return numpy_helper.to_array(tensor)

    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        value, codes, scales = node.input[:3]
        weights = _unpack(node, read(codes), read(scales))
        total = users.get(node.output[0])
        if total is not None and _adds_product(total, makers):  # else it may add a bias
            rest = makers[total.input[1]].input[1]
            turned = makers.get(rest)
            rests = read(rest).T if turned is None else read(turned.input[0])
            weights += rests[..., None]
            node.output[0], total.output[0] = total.output[0], ""
        stored = numpy_helper.from_array(_halve(codes, weights.reshape(len(weights), -1).T))
        stored.name = f"{codes}.unpacked"
        model.graph.initializer.append(stored)
        node.CopyFrom(helper.make_node("MatMul", [value, stored.name], node.output, node.name))


def _adds_product(node: NodeProto, makers: Mapping[str, NodeProto]) -> bool:
    added = makers.get(node.input[1]) if node.op_type == "Add" else None
    return added is not None and added.op_type == "MatMul"


def _unpack(node: NodeProto, codes: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    """Weights of a product without their rest, shape (outputs, groups, weights of a group)."""
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    if sizes["bits"] == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1)
    codes = codes.reshape(sizes["N"], -1, sizes["block_size"])
    weights: NDArray[np.float32] = codes.astype(np.float32) - (1 << (sizes["bits"] - 1))
    weights *= scales.reshape(sizes["N"], -1, 1)
    return weights


def _drop_unused(model: ModelProto) -> None:
    """Remove nodes and weights that no output needs."""
    needed = {face.name for face in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):  # users stand behind what they use
        if not needed.isdisjoint({*node.output} - {""}):
            kept.append(node)
            needed.update(node.input)
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(tensors)


def _halve_face(face: ValueInfoProto) -> None:
    if face.type.tensor_type.elem_type == TensorProto.FLOAT:
        face.type.tensor_type.elem_type = TensorProto.FLOAT16


def _halve_casts(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _rewrite(tensor: TensorProto, source: Path, data_file: BinaryIO) -> None:
    """Halve a tensor, and put it into the new data file if it is large."""
    if tensor.data_location == TensorProto.EXTERNAL:
        load_external_data_for_tensor(tensor, str(source))
    if tensor.data_type == TensorProto.FLOAT:
        halved = _halve(tensor.name, numpy_helper.to_array(tensor))
        tensor.data_type = TensorProto.FLOAT16
        tensor.raw_data = halved.tobytes()
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    if len(tensor.raw_data) > INLINE_BYTES:
        data_file.write(bytes(-data_file.tell() % ALIGNMENT))
        place = {"location": DATA_FILE, "offset": data_file.tell(), "length": len(tensor.raw_data)}
        data_file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))


def _halve(name: str, values: NDArray[Any]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halved = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(halved).all():
        raise UnsupportedModelError(f"{name}: weights too large for half precision")
    return halved
