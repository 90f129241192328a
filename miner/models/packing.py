"""What the block records of each quantised kind mean, in the terms of MatMulNBits.

MatMulNBits multiplies by weights `scale * (code - half)`, one scale for a group of neighbouring
weights of a row, half = 2^(bits-1). Every kind that is read is a constant per group times small
integers, plus, for some, another constant per group:

    weight = scale * (code - half) + rest

So codes and scales go into the operator, and rests, times the sum of the group's inputs, into a
small MatMul. Codes are integers, scales are products of a half-precision number and a small
integer, which fp32 holds exactly; a rest is one such product, or the difference of two, rounded
once. Codes lie about `half`, so that both products are small and their rounding too.

Source of the layouts: ggml-org/ggml, src/ggml-quants.c. `tests/vectors/gguf_kinds.json` holds
blocks of each kind with the weights that another implementation reads out of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from miner.models.kinds import TensorKind

Blocks: TypeAlias = NDArray[Any]
"""Block records, shape (rows, blocks of a row)."""
Bytes: TypeAlias = NDArray[Any]
"""Of numpy type uint8."""
Floats: TypeAlias = NDArray[np.float32]

NON_LINEAR: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)
"""What the sixteen codes of IQ4_NL and IQ4_XS stand for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How one kind goes into MatMulNBits. The functions take (rows, blocks of a row)."""

    bits: Literal[4, 8]
    group: int
    """Neighbouring weights of one scale; a power of two, at least 16."""
    codes: Callable[[Blocks], Bytes]
    """Shape (rows, weights of a row), below 2^bits."""
    scales: Callable[[Blocks], Floats]
    """Shape (rows, groups of a row)."""
    rests: Callable[[Blocks], Floats] | None = None
    """Shape (rows, groups of a row); None: all zero."""


def pack_codes(packing: Packing, blocks: Blocks) -> Bytes:
    """Codes as MatMulNBits stores them: shape (rows, groups, bytes), even codes in low nibbles."""
    codes = packing.codes(blocks)
    packed: Bytes = codes.reshape(len(codes), -1, packing.group)
    if packing.bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
    return packed


def dequantise(packing: Packing, blocks: Blocks) -> Floats:
    """The weights themselves, shape (rows, weights of a row)."""
    half = 1 << (packing.bits - 1)
    codes = packing.codes(blocks).reshape(len(blocks), -1, packing.group)
    weights = (codes.astype(np.int16) - half).astype(np.float32)
    weights *= packing.scales(blocks)[..., None]
    if packing.rests is not None:
        weights += packing.rests(blocks)[..., None]
    return weights.reshape(len(blocks), -1)


def _flat(values: NDArray[Any]) -> Bytes:
    """From (rows, blocks, …) to (rows, weights), as bytes that wrap around."""
    return values.reshape(len(values), -1).astype(np.uint8)


def _scale(blocks: Blocks) -> Floats:
    return blocks["d"].astype(np.float32)


def _offset(blocks: Blocks) -> Floats:
    return blocks["m"].astype(np.float32)


# Kinds with blocks of 32. The low nibbles are the first 16 weights, the high ones the others.


def _nibbles(quants: Bytes) -> Bytes:
    return np.concatenate([quants & 15, quants >> 4], axis=-1)


def _fives(blocks: Blocks) -> Bytes:
    fifth = np.unpackbits(blocks["h"], axis=-1, bitorder="little")
    codes: Bytes = _nibbles(blocks["q"]) | (fifth << 4)
    return codes


# K kinds: 256 weights with one or two half-precision numbers, and a small integer scale (and
# offset) for each 16 or 32 of them.


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight offsets of 6 bits, out of 12 bytes."""
    low, middle, high = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = [low & 63, (high & 15) | ((low >> 6) << 4)]
    offsets = [middle & 63, (high >> 4) | ((middle >> 6) << 4)]
    return np.concatenate(scales, axis=-1), np.concatenate(offsets, axis=-1)


def _super_scale(blocks: Blocks, integers: NDArray[Any]) -> Floats:
    """The small integers times their block's number; shape (rows, groups)."""
    scales = _scale(blocks)[..., None] * integers.astype(np.float32)
    return scales.reshape(len(blocks), -1)


def _super_offset(blocks: Blocks, integers: NDArray[Any]) -> Floats:
    offsets = -(_offset(blocks)[..., None] * integers.astype(np.float32))
    return offsets.reshape(len(blocks), -1)


def _k_scales(blocks: Blocks) -> Floats:
    return _super_scale(blocks, _six_bit_pairs(blocks["s"])[0])


def _k_offsets(blocks: Blocks) -> Floats:
    return _super_offset(blocks, _six_bit_pairs(blocks["s"])[1])


def _k_nibbles(blocks: Blocks) -> Bytes:
    """128 bytes as 256 nibbles: of each 32 bytes first the low ones, then the high ones."""
    quants = blocks["q"].reshape(*blocks.shape, 4, 1, 32)
    return np.concatenate([quants & 15, quants >> 4], axis=-2).reshape(*blocks.shape, 8, 32)


def _q5_k_codes(blocks: Blocks) -> Bytes:
    bit = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks["h"][..., None, :] >> bit) & 1
    return _flat((_k_nibbles(blocks) | (fifth << 4)) + (128 - 16))


def _q6_k_codes(blocks: Blocks) -> Bytes:
    shape = (*blocks.shape, 2, 1)
    low = blocks["q"].reshape(*shape, 64)
    four = np.concatenate([low & 15, low >> 4], axis=-2).reshape(*blocks.shape, 2, 4, 32)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    two = (blocks["h"].reshape(*shape, 32) >> shift) & 3
    return _flat((four | (two << 4)) + (128 - 32))


def _pairs(blocks: Blocks) -> Bytes:
    """64 bytes as 256 codes of 2 bits, shape (rows, blocks, 2, 4, 32)."""
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    pairs: Bytes = (blocks["q"].reshape(*blocks.shape, 2, 1, 32) >> shift) & 3
    return pairs


def _q3_k_codes(blocks: Blocks) -> Bytes:
    bit = np.arange(8, dtype=np.uint8).reshape(2, 4, 1)
    third = (blocks["h"][..., None, None, :] >> bit) & 1
    return _flat((_pairs(blocks) | (third << 2)) + (8 - 4))


def _q3_k_scales(blocks: Blocks) -> Floats:
    packed = blocks["s"]
    low = np.concatenate([packed[..., :8] & 15, packed[..., :8] >> 4], axis=-1)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (packed[..., None, 8:] >> shift) & 3
    integers = low | (high.reshape(*blocks.shape, 16) << 4)
    return _super_scale(blocks, integers.astype(np.int16) - 32)


def _iq4_xs_scales(blocks: Blocks) -> Floats:
    low = np.stack([blocks["sl"] & 15, blocks["sl"] >> 4], axis=-1).reshape(*blocks.shape, 8)
    high = (blocks["sh"][..., None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    return _super_scale(blocks, (low | (high << 4)).astype(np.int16) - 32)


def _iq4_xs_codes(blocks: Blocks) -> Bytes:
    return _flat(NON_LINEAR[_nibbles(blocks["q"].reshape(*blocks.shape, 8, 16))] + 128)


PACKINGS: Final = {
    TensorKind.Q4_0: Packing(
        bits=4, group=32, codes=lambda b: _flat(_nibbles(b["q"])), scales=_scale
    ),
    TensorKind.Q4_1: Packing(
        bits=4,
        group=32,
        codes=lambda b: _flat(_nibbles(b["q"])),
        scales=_scale,
        rests=lambda b: _offset(b) + 8 * _scale(b),
    ),
    TensorKind.Q5_0: Packing(
        bits=8, group=32, codes=lambda b: _flat(_fives(b) + (128 - 16)), scales=_scale
    ),
    TensorKind.Q5_1: Packing(
        bits=8,
        group=32,
        codes=lambda b: _flat(_fives(b) + (128 - 16)),
        scales=_scale,
        rests=lambda b: _offset(b) + 16 * _scale(b),
    ),
    TensorKind.Q8_0: Packing(
        bits=8, group=32, codes=lambda b: _flat(b["q"].astype(np.int16) + 128), scales=_scale
    ),
    TensorKind.Q2_K: Packing(
        bits=4,
        group=16,
        codes=lambda b: _flat(_pairs(b) + 8),
        scales=lambda b: _super_scale(b, b["s"] & 15),
        rests=lambda b: _super_offset(b, b["s"] >> 4),
    ),
    TensorKind.Q3_K: Packing(bits=4, group=16, codes=_q3_k_codes, scales=_q3_k_scales),
    TensorKind.Q4_K: Packing(
        bits=4,
        group=32,
        codes=lambda b: _flat(_k_nibbles(b)),
        scales=_k_scales,
        rests=lambda b: _k_offsets(b) + 8 * _k_scales(b),
    ),
    TensorKind.Q5_K: Packing(
        bits=8,
        group=32,
        codes=_q5_k_codes,
        scales=_k_scales,
        rests=lambda b: _k_offsets(b) + 16 * _k_scales(b),
    ),
    TensorKind.Q6_K: Packing(
        bits=8, group=16, codes=_q6_k_codes, scales=lambda b: _super_scale(b, b["s"])
    ),
    TensorKind.IQ4_NL: Packing(
        bits=8, group=32, codes=lambda b: _flat(NON_LINEAR[_nibbles(b["q"])] + 128), scales=_scale
    ),
    TensorKind.IQ4_XS: Packing(bits=8, group=32, codes=_iq4_xs_codes, scales=_iq4_xs_scales),
}
"""Every kind that is not a float."""
