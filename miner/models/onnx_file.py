"""An ONNX file's graph without the weights that stand in it.

A file may hold gigabytes of weights between its nodes, and protobuf's own parser reads them all.
This walks the few outer fields itself, leaves large tensors where they are, and says where that is.

Source: the protobuf encoding, and the field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from miner.errors import ModelFormatError

MAX_GRAPH_BYTES: Final = 256 << 20
"""Of a graph without its large tensors."""
INLINE_BYTES: Final = 1 << 12
"""A tensor up to this size stays in the graph."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineWeight:
    """Where the bytes of a large tensor stand in the ONNX file itself."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A graph, and where its weights are."""

    path: Path
    model: ModelProto
    """Tensors named in `inline` are without their bytes."""
    inline: tuple[InlineWeight, ...]

    @property
    def data_files(self) -> list[str]:
        """Names of the files beside it that hold weights, as the graph spells them."""
        entries = (e for tensor in self.model.graph.initializer for e in tensor.external_data)
        return sorted({entry.value for entry in entries if entry.key == "location"})

    def serialize(self) -> bytes:
        """The graph as it is now, with the weights that stood in the file.

        Raises:
            OSError: the file cannot be read again.
        """
        whole = ModelProto()
        whole.CopyFrom(self.model)
        tensors = {tensor.name: tensor for tensor in whole.graph.initializer}
        with self.path.open("rb") as file:
            for weight in self.inline:
                file.seek(weight.offset)
                tensors[weight.name].raw_data = file.read(weight.size)
        content: bytes = whole.SerializeToString()
        return content


def read_onnx(path: Path) -> OnnxFile:
    """Read a graph.

    Raises:
        ModelFormatError: no ONNX file, or none that can be read.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _Reader(path, content).read()
    except OSError as error:
        raise ModelFormatError(f"{path}: {error.strerror}") from error
    except (ModelFormatError, DecodeError, ValueError) as error:  # mmap: an empty file
        raise ModelFormatError(f"{path}: no ONNX model: {error}") from error


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    start: int
    """Of its tag."""
    value: int
    """Start of its value, after a length if it has one."""
    end: int


class _Reader:
    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._kept = 0
        self._inline: list[InlineWeight] = []

    def read(self) -> OnnxFile:
        model, tensors = ModelProto(), []
        for field in self._fields(0, len(self._content)):
            if field.number != _GRAPH:
                model.MergeFromString(self._bytes(field))
                continue
            for inner in self._fields(field.value, field.end):
                if inner.number == _INITIALIZER:
                    tensors.append(self._tensor(inner))
                else:
                    model.graph.MergeFromString(self._bytes(inner))
        model.graph.initializer.extend(tensors)
        if not model.graph.node:
            raise ModelFormatError("a graph without nodes")
        return OnnxFile(path=self._path, model=model, inline=tuple(self._inline))

    def _tensor(self, field: _Field) -> TensorProto:
        tensor, raw = TensorProto(), None
        for inner in self._fields(field.value, field.end):
            if inner.number == _RAW_DATA and inner.end - inner.value > INLINE_BYTES:
                raw = inner
            else:
                tensor.MergeFromString(self._bytes(inner))
        if raw is not None:
            size = raw.end - raw.value
            self._inline.append(InlineWeight(name=tensor.name, offset=raw.value, size=size))
        return tensor

    def _bytes(self, field: _Field) -> bytes:
        self._kept += field.end - field.start
        if self._kept > MAX_GRAPH_BYTES:
            raise ModelFormatError(f"more than {MAX_GRAPH_BYTES} bytes without its weights")
        return self._content[field.start : field.end]

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        while at < end:
            start = at
            tag, at = self._varint(at, end)
            kind = tag & 7
            if kind == _BYTES:
                size, at = self._varint(at, end)
            elif kind == _VARINT:
                size = self._varint(at, end)[1] - at
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise ModelFormatError(f"wire type {kind} at byte {start}")
            if size > end - at:
                raise ModelFormatError(f"cut off at byte {start}")
            yield _Field(tag >> 3, start, at, at + size)
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(_MAX_VARINT):
            if at + shift >= end:
                break
            byte = self._content[at + shift]
            value |= (byte & 127) << (7 * shift)
            if byte < 128:
                return value, at + shift + 1
        raise ModelFormatError(f"a number at byte {at} does not end")
