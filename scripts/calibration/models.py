"""Models of the calibration: the embedded one, and what honest or cheating providers make of it.

Each is written into a folder of its own, once.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from miner.models.convert import Head, write_model
from miner.models.embedded import default_cache, fetch_gguf, prepare_embedded_model
from miner.models.gguf import GgufFile, Tensor, parse_gguf
from miner.models.half import write_half_model
from miner.models.kinds import TensorKind

LAYERS: Final = "llama.block_count"


def base() -> Path:
    """The embedded model as it is served."""
    return prepare_embedded_model(default_cache(os.environ), print).path


class Workshop:
    """Makes and keeps the models in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gguf: GgufFile | None = None

    def find(self, name: str) -> Path:
        """The directory of a model by its name, made if need be."""
        if name == "base":
            return base()
        target = self._folder / name
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                fresh = Path(scratch) / "model"
                fresh.mkdir()
                MAKERS[name](self, fresh)
                fresh.rename(target)
        return target

    @property
    def gguf(self) -> GgufFile:
        """The source of the embedded model."""
        if self._gguf is None:
            with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
                self._gguf = parse_gguf(fetch_gguf(Path(scratch)))
        return self._gguf

    def convert(
        self, target: Path, change: Callable[[GgufFile], GgufFile], head: Head = "int8"
    ) -> None:
        """Convert a changed source."""
        write_model(change(self.gguf), target, head=head)

    def edit(self, target: Path, change: Callable[[onnx.ModelProto], None]) -> None:
        """Copy the embedded model with a changed graph."""
        shutil.copytree(base(), target, dirs_exist_ok=True)
        path = target / "model.onnx"
        model = onnx.load(str(path), load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())


def unchanged(gguf: GgufFile) -> GgufFile:
    """The source itself."""
    return gguf


def with_layers(layers: int) -> Callable[[GgufFile], GgufFile]:
    """Leave out the last layers."""

    def change(gguf: GgufFile) -> GgufFile:
        cut = {f"blk.{layer}." for layer in range(layers, gguf.value(LAYERS, int))}
        kept = {
            name: tensor
            for name, tensor in gguf.tensors.items()
            if not any(name.startswith(prefix) for prefix in cut)
        }
        return dataclasses.replace(gguf, metadata=gguf.metadata | {LAYERS: layers}, tensors=kept)

    return change


def requantise(gguf: GgufFile) -> GgufFile:
    """Symmetric 4-bit weights instead of weights with an offset: as Q4_0 has them."""
    return dataclasses.replace(
        gguf, tensors={name: _requantise(tensor) for name, tensor in gguf.tensors.items()}
    )


def _requantise(tensor: Tensor) -> Tensor:
    if tensor.kind is not TensorKind.Q4_1:
        return tensor
    old = tensor.blocks
    quants = np.concatenate([old["q"] & 15, old["q"] >> 4], axis=-1).astype(np.float32)
    values = old["d"].astype(np.float32)[..., None] * quants
    values += old["m"].astype(np.float32)[..., None]
    extreme = np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), -1)[..., 0]
    scale = (extreme / -8).astype(np.float16)
    divisor = np.where(scale == 0, 1, scale).astype(np.float32)[..., None]
    levels = np.clip(np.round(values / divisor) + 8, 0, 15).astype(np.uint8)
    half = levels.shape[-1] // 2
    fresh: NDArray[Any] = np.zeros(old.shape, old.dtype)
    fresh["d"], fresh["m"] = scale, (-8 * scale.astype(np.float32)).astype(np.float16)
    fresh["q"] = levels[..., :half] | (levels[..., half:] << 4)
    return dataclasses.replace(tensor, blocks=fresh)


def integer_layers(model: onnx.ModelProto) -> None:
    """Multiply in integers: inputs of all layers rounded to 8 bits."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 4


def rounded_to(kind: int) -> Callable[[onnx.ModelProto], None]:
    """Round what goes into and comes out of every multiplication.

    So would a processor that computes in that format and sums in single precision.
    """

    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        del model.graph.node[:]
        for node in nodes:
            if node.op_type in {"MatMulNBits", "MatMul", "GroupQueryAttention"}:
                given, result = node.input[0], node.output[0]
                node.input[0] = f"{node.name}/input/again"
                node.output[0] = f"{node.name}/output/whole"
                before = _round(given, node.input[0], kind)
                after = _round(node.output[0], result, kind)
                model.graph.node.extend([*before, node, *after])
            else:
                model.graph.node.append(node)

    return change


def _round(source: str, result: str, kind: int) -> list[onnx.NodeProto]:
    """Two casts: to the format and back."""
    inner = f"{result}/rounded"
    return [
        helper.make_node("Cast", [source], [inner], to=kind),
        helper.make_node("Cast", [inner], [result], to=TensorProto.FLOAT),
    ]


MAKERS: Final[Mapping[str, Callable[[Workshop, Path], None]]] = {
    "fp32-head": lambda shop, target: shop.convert(target, unchanged, "fp32"),
    "half": lambda shop, target: shop.edit(target, rounded_to(TensorProto.FLOAT16)),
    "bfloat": lambda shop, target: shop.edit(target, rounded_to(TensorProto.BFLOAT16)),
    "float16": lambda _, target: write_half_model(base(), target, unpack=True),
    "int8-layers": lambda shop, target: shop.edit(target, integer_layers),
    "int4": lambda shop, target: shop.convert(target, requantise),
    "29-layers": lambda shop, target: shop.convert(target, with_layers(29)),
    "28-layers": lambda shop, target: shop.convert(target, with_layers(28)),
}
