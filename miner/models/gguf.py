"""Reader of GGUF model files, versions 2 and 3, little-endian.

Source: the GGUF format description (ggml-org/ggml, docs/gguf.md). A file is a header, key-value
metadata, tensor descriptions, then aligned tensor data. Everything is bounded and checked before
it is used, since a model file may come from anybody: any breach raises `ModelFormatError`.
Nothing is copied: tensors are read-only views of the bytes given, which may be a mapped file.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.kinds import OTHER_KINDS, TensorKind

VERSIONS: Final = (2, 3)
"""They differ in nothing but byte order, which version 3 allows to be big-endian."""
MAX_METADATA: Final = 4_096
MAX_HEADER_BYTES: Final = 64 << 20
"""Metadata and tensor descriptions together; a vocabulary of 256,000 tokens takes about 10 MB."""
MAX_TENSORS: Final = 65_536
MAX_ARRAY_ITEMS: Final = 4_000_000
MAX_STRING_BYTES: Final = 1 << 20
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = 1 << 40
Scalar: TypeAlias = int | float | bool | str
MetadataValue: TypeAlias = Scalar | list[Scalar]
T = TypeVar("T")

_SCALARS: Final = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING: Final = 8
_ARRAY: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor: for quantised kinds an array of block records, one row per output feature."""

    kind: TensorKind
    shape: tuple[int, ...]
    """Slowest dimension first, in weights (not blocks)."""
    blocks: NDArray[Any]
    """Shape: as `shape`, the last dimension divided by the block size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A parsed file."""

    metadata: dict[str, MetadataValue]
    tensors: dict[str, Tensor]

    def value(self, key: str, kind: type[T]) -> T:
        """The metadata under `key`, which must be there and of that type."""
        found = self.metadata.get(key)
        if type(found) is not kind:
            raise ModelFormatError(
                f"GGUF metadata {key!r}: expected {kind.__name__}, got {found!r:.80}"
            )
        return found

    def items(self, key: str, kind: type[T]) -> list[T]:
        """The metadata array under `key`, whose items must be of that type."""
        found = self.value(key, list)
        checked = [item for item in found if type(item) is kind]
        if len(checked) != len(found):
            raise ModelFormatError(f"GGUF metadata {key!r}: not all items are {kind.__name__}")
        return checked

    def optional(self, key: str, kind: type[T], default: T) -> T:
        """The metadata under `key`, or the default if there is none."""
        return self.value(key, kind) if key in self.metadata else default

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that must have exactly this shape."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelFormatError(f"GGUF tensor {name!r} is missing")
        if found.shape != shape:
            raise ModelFormatError(f"GGUF tensor {name!r}: expected {shape}, got {found.shape}")
        return found


def open_gguf(path: Path) -> GgufFile:
    """Map a file of any size into memory and read it; tensors stay on disk until they are used.

    Raises:
        ModelFormatError, UnsupportedModelError: as `parse_gguf`, with the file's name.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ModelFormatError(f"{path}: an empty file") from error
    try:
        return parse_gguf(memoryview(mapped))
    except (ModelFormatError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from error


def parse_gguf(data: bytes | memoryview) -> GgufFile:
    """Read a whole file.

    Raises:
        ModelFormatError: the bytes break the format or a bound.
        UnsupportedModelError: another version or byte order, a part of a split file, or a tensor
            kind that is not read.
    """
    cursor = _Cursor(memoryview(data))
    _check_version(cursor)
    tensor_count = cursor.count(MAX_TENSORS, "tensors")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(cursor.count(MAX_METADATA, "metadata entries")):
        key = cursor.string()
        if key in metadata:
            raise ModelFormatError(f"GGUF metadata {key!r} occurs twice")
        metadata[key] = cursor.value(int(cursor.scalar(4)))
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):  # not a set: what is there may be a list
        raise UnsupportedModelError(
            f"this is one of {parts!r:.20} parts of a model: join them into one "
            "file first (llama-gguf-split --merge FIRST-PART OUTPUT)"
        )
    described = [_describe(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 16:
        raise ModelFormatError(f"GGUF alignment {alignment!r} is out of bounds")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset in described:
        if name in tensors:
            raise ModelFormatError(f"GGUF tensor {name!r} occurs twice")
        tensors[name] = _view(cursor.data, start + offset, name, kind, shape)
    return GgufFile(metadata=metadata, tensors=tensors)


def _check_version(cursor: _Cursor) -> None:
    magic, version = bytes(cursor.take(4)), int(cursor.scalar(4))
    if magic != b"GGUF":
        raise ModelFormatError(f"not a GGUF file: it begins with {magic!r}")
    if version >> 16:
        raise UnsupportedModelError("a big-endian GGUF file: get the little-endian one")
    if version not in VERSIONS:
        raise UnsupportedModelError(
            f"GGUF version {version} is not read, only {' and '.join(map(str, VERSIONS))}: "
            "get a newer file"
        )


class _Cursor:
    """A position in the bytes that never passes their end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > MAX_HEADER_BYTES:
            raise ModelFormatError(f"GGUF header of more than {MAX_HEADER_BYTES} bytes")
        if end > len(self.data):
            raise ModelFormatError(f"GGUF file ends early: {len(self.data)} bytes, {end} needed")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def scalar(self, kind: int) -> int | float | bool:
        form = _SCALARS.get(kind)
        if form is None:
            raise ModelFormatError(f"GGUF value type {kind} is unknown")
        value: int | float | bool = form.unpack(self.take(form.size))[0]
        return value

    def count(self, limit: int, what: str) -> int:
        number = int(self.scalar(10))
        if number > limit:
            raise ModelFormatError(f"GGUF file claims {number} {what}, at most {limit} are read")
        return number

    def string(self) -> str:
        raw = self.take(self.count(MAX_STRING_BYTES, "bytes in a string"))
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"GGUF string is not UTF-8: {error}") from error

    def value(self, kind: int) -> MetadataValue:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(kind)
        item_kind = int(self.scalar(4))
        if item_kind == _ARRAY:
            raise ModelFormatError("GGUF arrays of arrays are not read")
        number = self.count(MAX_ARRAY_ITEMS, "items in an array")
        if item_kind == _STRING:
            return [self.string() for _ in range(number)]
        return [self.scalar(item_kind) for _ in range(number)]


def _describe(cursor: _Cursor) -> tuple[str, TensorKind, tuple[int, ...], int]:
    """Name, kind, shape (slowest dimension first) and offset into the data of one tensor."""
    name = cursor.string()
    dimensions = int(cursor.scalar(4))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ModelFormatError(f"GGUF tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.count(MAX_ELEMENTS, "weights in a row") for _ in range(dimensions))[::-1]
    number = int(cursor.scalar(4))
    if number in OTHER_KINDS:
        raise UnsupportedModelError(
            f"GGUF tensor {name!r} is stored as {OTHER_KINDS[number]}, which is not converted; get "
            f"a file of one of {', '.join(kind.name for kind in TensorKind)}, or a mix of these"
        )
    if number not in set(TensorKind):
        raise ModelFormatError(f"GGUF tensor {name!r} is of unknown GGML type {number}")
    return name, TensorKind(number), shape, int(cursor.scalar(10))


def _view(
    data: memoryview, offset: int, name: str, kind: TensorKind, shape: tuple[int, ...]
) -> Tensor:
    block = kind.block_weights
    count = math.prod(shape) // block
    if shape[-1] % block or not 0 < count <= MAX_ELEMENTS:
        raise ModelFormatError(f"GGUF tensor {name!r}: shape {shape} does not fit {kind.name}")
    if offset + count * kind.record.itemsize > len(data):
        raise ModelFormatError(
            f"GGUF tensor {name!r} runs past the end of the file: is the download complete?"
        )
    blocks = np.frombuffer(data, dtype=kind.record, count=count, offset=offset)
    return Tensor(kind=kind, shape=shape, blocks=blocks.reshape(*shape[:-1], shape[-1] // block))
