"""Make tests/vectors/gguf_kinds.json: what another implementation reads out of GGUF blocks.

Random blocks of every kind that is converted, and their weights as GGML's own Python package
dequantises them. Not part of the tests' own run:

    python -m venv /tmp/gguf
    /tmp/gguf/bin/pip install gguf
    /tmp/gguf/bin/python -m scripts.make_gguf_vectors
"""

from __future__ import annotations

import base64
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType, quants  # type: ignore[import-not-found]
from numpy.typing import NDArray

from miner.models.kinds import TensorKind

OUTPUT: Final = Path(__file__).parent.parent / "tests" / "vectors" / "gguf_kinds.json"
WEIGHTS: Final = 512
SPREAD: Final = 0.05
"""Standard deviation of the weights, so that models can be made of them."""


def main() -> None:
    """Write the vector file."""
    random = np.random.default_rng(1)
    kinds = {kind.name: vector(kind, random) for kind in TensorKind}
    content = {
        "made_by": "scripts/make_gguf_vectors.py",
        "reference": f"gguf {version('gguf')}",
        "kinds": kinds,
    }
    OUTPUT.write_text(json.dumps(content) + "\n", encoding="ascii")


def vector(kind: TensorKind, random: np.random.Generator) -> dict[str, str]:
    """Blocks, and their weights as little-endian fp32; both in base64."""
    blocks = draw(kind, random)
    if not kind.is_float:
        centre(kind, blocks)
        factor = SPREAD / read(kind, blocks).std()
        for field in fields(kind):
            blocks[field] = (blocks[field].astype(np.float32) * factor).astype("<f2")
    return {
        "blocks": base64.b64encode(blocks.tobytes()).decode(),
        "weights": base64.b64encode(read(kind, blocks).astype("<f4").tobytes()).decode(),
    }


def fields(kind: TensorKind) -> list[str]:
    """The numbers of half precision in a block."""
    return [name for name in ("d", "m") if name in (kind.record.names or ())]


def centre(kind: TensorKind, blocks: NDArray[Any]) -> None:
    """Make the mean of the weights zero, by their offsets if they have any."""
    if "m" not in fields(kind):
        return
    offsets = blocks["m"].copy()
    blocks["m"] = 0
    mean = read(kind, blocks).mean()
    scales, blocks["m"], blocks["d"] = blocks["d"].copy(), offsets, 0
    factor = -mean / read(kind, blocks).mean()
    blocks["d"], blocks["m"] = scales, (offsets.astype(np.float32) * factor).astype("<f2")


def draw(kind: TensorKind, random: np.random.Generator) -> NDArray[Any]:
    """Random blocks: every bit pattern, but for numbers of half precision, which are finite."""
    count = WEIGHTS // kind.block_weights
    if kind is TensorKind.BF16:
        return (random.normal(0, SPREAD, count).astype("<f4").view("<u4") >> 16).astype("<u2")
    if kind.is_float:
        return random.normal(0, SPREAD, count).astype(kind.record)
    blocks = np.frombuffer(random.bytes(count * kind.record.itemsize), kind.record).copy()
    for field in fields(kind):
        blocks[field] = random.uniform(0.5, 2, count).astype("<f2")
    return blocks


def read(kind: TensorKind, blocks: NDArray[Any]) -> NDArray[np.float32]:
    """The weights, as the reference sees them."""
    raw = np.frombuffer(blocks.tobytes(), np.uint8)
    weights: NDArray[np.float32] = quants.dequantize(raw, GGMLQuantizationType(int(kind)))
    return weights


if __name__ == "__main__":
    main()
