"""A yardstick: one step of a plain Llama in PyTorch, in half precision, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from miner.models.layout import CONFIG, GENAI_CONFIG
from miner.runtime.config import ModelConfig
from miner.tokenizer import read_json

PAST = 128
"""Tokens in every row's cache."""


def build(torch: Any, root: Path, config: ModelConfig, batch: int, place: str) -> Callable[[], Any]:
    """A function that computes one step of `batch` rows and waits for its logits on the host.

    On a GPU it is recorded and replayed, as the miner's own are.
    """
    hidden, wide, heads = _sizes(root, config)
    size, kv_width = config.head_size, config.kv_heads * config.head_size
    half = {"dtype": torch.float16, "device": place}

    def matrix(outputs: int, inputs: int) -> Any:
        return torch.randn(outputs, inputs, **half) * 0.02

    layers = [
        (
            matrix(heads * size + 2 * kv_width, hidden),
            matrix(hidden, heads * size),
            matrix(2 * wide, hidden),
            matrix(hidden, wide),
            torch.randn(2, batch, config.kv_heads, PAST, size, **half),
        )
        for _ in range(config.layers)
    ]
    embedding = matrix(config.vocabulary, hidden)
    ids = torch.ones(batch, dtype=torch.int64, device=place)
    linear, attend = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention
    norm = torch.nn.functional.rms_norm

    def compute() -> Any:
        with torch.inference_mode():
            x = embedding[ids]
            for qkv, output, gate_up, down, past in layers:
                packed = linear(norm(x, (hidden,)), qkv)
                q, k, v = packed.split([heads * size, kv_width, kv_width], dim=-1)
                k, v = (part.view(batch, config.kv_heads, 1, size) for part in (k, v))
                keys, values = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
                q = q.view(batch, heads, 1, size)
                attended = attend(q, keys, values, enable_gqa=True)
                x = x + linear(attended.reshape(batch, heads * size), output)
                gate, up = linear(norm(x, (hidden,)), gate_up).chunk(2, dim=-1)
                x = x + linear(torch.nn.functional.silu(gate) * up, down)
            return linear(norm(x, (hidden,)), embedding).float()

    if not place.startswith("cuda"):
        return lambda: compute().cpu()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # what is loaded at first need is not recorded
        compute()
    side.synchronize()
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording):
        logits = compute()

    def replay() -> Any:
        recording.replay()
        return logits.cpu()

    return replay


def _sizes(root: Path, config: ModelConfig) -> tuple[int, int, int]:
    """Hidden and feed-forward width and heads; what a layout does not say is as is usual."""
    is_genai = (root / GENAI_CONFIG).exists()
    content = read_json(root / (GENAI_CONFIG if is_genai else CONFIG))
    content = content["model"]["decoder"] if is_genai else content
    hidden = int(content["hidden_size"])
    wide = int(content.get("intermediate_size") or hidden * 8 // 3)
    return hidden, wide, int(content.get("num_attention_heads") or hidden // config.head_size)
