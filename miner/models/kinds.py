"""How GGML stores weights: the kinds this project reads, each as an array of block records.

Source: the block structures of ggml (ggml-org/ggml, src/ggml-common.h). A block holds 32 or 256
neighbouring weights of one row. What the records mean stands in `miner.models.packing`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np


class TensorKind(IntEnum):
    """How weights are stored, by GGML's number."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30

    @property
    def is_float(self) -> bool:
        """Whether each weight stands by itself."""
        return self in FLOATS

    @property
    def block_weights(self) -> int:
        """Weights in one block."""
        if self.is_float:
            return 1
        return 256 if self in _SUPER_BLOCKS else 32

    @property
    def record(self) -> np.dtype[Any]:
        """One block as numpy reads it."""
        return _RECORDS[self]


FLOATS: Final = frozenset({TensorKind.F32, TensorKind.F16, TensorKind.BF16})
_SUPER_BLOCKS: Final = frozenset(
    {
        TensorKind.Q2_K,
        TensorKind.Q3_K,
        TensorKind.Q4_K,
        TensorKind.Q5_K,
        TensorKind.Q6_K,
        TensorKind.IQ4_XS,
    }
)
_D: Final = ("d", "<f2")
_RECORDS: Final[dict[TensorKind, np.dtype[Any]]] = {
    TensorKind.F32: np.dtype("<f4"),
    TensorKind.F16: np.dtype("<f2"),
    TensorKind.BF16: np.dtype("<u2"),
    TensorKind.Q4_0: np.dtype([_D, ("q", "u1", 16)]),
    TensorKind.Q4_1: np.dtype([_D, ("m", "<f2"), ("q", "u1", 16)]),
    TensorKind.Q5_0: np.dtype([_D, ("h", "u1", 4), ("q", "u1", 16)]),
    TensorKind.Q5_1: np.dtype([_D, ("m", "<f2"), ("h", "u1", 4), ("q", "u1", 16)]),
    TensorKind.Q8_0: np.dtype([_D, ("q", "i1", 32)]),
    TensorKind.Q2_K: np.dtype([("s", "u1", 16), ("q", "u1", 64), _D, ("m", "<f2")]),
    TensorKind.Q3_K: np.dtype([("h", "u1", 32), ("q", "u1", 64), ("s", "u1", 12), _D]),
    TensorKind.Q4_K: np.dtype([_D, ("m", "<f2"), ("s", "u1", 12), ("q", "u1", 128)]),
    TensorKind.Q5_K: np.dtype(
        [_D, ("m", "<f2"), ("s", "u1", 12), ("h", "u1", 32), ("q", "u1", 128)]
    ),
    TensorKind.Q6_K: np.dtype([("q", "u1", 128), ("h", "u1", 64), ("s", "i1", 16), _D]),
    TensorKind.IQ4_NL: np.dtype([_D, ("q", "u1", 16)]),
    TensorKind.IQ4_XS: np.dtype([_D, ("sh", "<u2"), ("sl", "u1", 4), ("q", "u1", 128)]),
}

OTHER_KINDS: Final = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Kinds that GGML knows and this project does not read; for words only."""
