"""Inputs and outputs of a model's session, held to its configuration."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from miner.errors import UnsupportedModelError
from miner.runtime.config import ModelConfig
from miner.runtime.device import Float
from miner.runtime.graph import FIRST_ROW, SHARPNESS

KEPT_ROWS: Final = "num_logits_to_keep"
"""An input that some exports have: for how many last tokens logits are computed; 0 for all."""
INTEGERS: Final = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
FLOATS: Final[dict[str, type[Float]]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def check_faces(config: ModelConfig, faces: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Refuse a graph whose inputs and outputs are not those of the configuration."""
    needed = {config.input_ids, config.attention_mask, *config.past_names}
    known = needed | {config.position_ids, FIRST_ROW, SHARPNESS, KEPT_ROWS}
    missing = sorted(needed - faces.keys())
    missing += sorted({config.logits, *config.present_names} - outputs.keys())
    unknown = sorted(faces.keys() - known)
    if missing or unknown:
        raise UnsupportedModelError(
            f"{config.file}: missing {missing[:3]}, unknown inputs {unknown[:3]}"
        )
    integers = [config.input_ids, config.attention_mask, config.position_ids]
    odd = [name for name in integers if name in faces and faces[name].type not in INTEGERS]
    floats = [faces[name] for name in config.past_names] + [outputs[config.logits]]
    odd += [face.name for face in floats if face.type not in FLOATS]
    if odd:
        raise UnsupportedModelError(f"{config.file}: elements of an unknown type: {odd[:3]}")
    _check_sizes(config, [faces[name] for name in config.past_names], outputs[config.logits])


def _check_sizes(config: ModelConfig, past: list[Any], logits: Any) -> None:
    wanted = (config.kv_heads, config.head_size)
    for face in past:
        sizes = tuple(face.shape)
        got = (sizes[1], sizes[3]) if len(sizes) == 4 else (0, 0)
        if (fixed_size(got[0], wanted[0]), fixed_size(got[1], wanted[1])) != wanted:
            raise UnsupportedModelError(
                f"{config.file}: {face.name} of shape {sizes}, where the configuration says "
                f"{wanted[0]} heads of size {wanted[1]}"
            )
    if len(logits.shape) != 3:
        raise UnsupportedModelError(f"{config.file}: logits of shape {logits.shape}")


def fixed_size(size: object, otherwise: int) -> int:
    """A size that the graph states, or what the configuration says of it."""
    return size if isinstance(size, int) else otherwise
