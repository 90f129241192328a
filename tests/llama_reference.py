"""What a model of the Llama family must compute, in plain numpy and double precision.

Written from the papers' formulas on dequantised weights: nothing of it is shared with the
converter. Rotary pairs are (2i, 2i+1) as a Llama's GGUF stores them, or (i, i + half) as Qwen's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(kw_only=True)
class LlamaReference:
    """Weights by GGUF's names, and the numbers that go with them."""

    weights: Mapping[str, np.ndarray]
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_base: float
    epsilon: float
    is_interleaved: bool = True
    divisors: np.ndarray = field(default_factory=lambda: np.ones(1))

    def logits(self, ids: list[int]) -> np.ndarray:
        """Shape (tokens, vocabulary)."""
        x = self.weights["token_embd.weight"][ids]
        for layer in range(self.layers):
            name = f"blk.{layer}"
            x = x + self._attention(name, self._norm(x, f"{name}.attn_norm"))
            x = x + self._feed_forward(name, self._norm(x, f"{name}.ffn_norm"))
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        return self._norm(x, "output_norm") @ head.T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return x / scale * self.weights[f"{name}.weight"]

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0)

    def _attention(self, name: str, x: np.ndarray) -> np.ndarray:
        def heads(part: str, number: int) -> np.ndarray:
            projected = self._linear(x, f"{name}.attn_{part}")
            split = projected.reshape(len(x), number, self.head_size).transpose(1, 0, 2)
            is_normed = f"{name}.attn_{part}_norm.weight" in self.weights
            return self._norm(split, f"{name}.attn_{part}_norm") if is_normed else split

        queries = self._rotate(heads("q", self.heads))
        keys, values = self._rotate(heads("k", self.kv_heads)), heads("v", self.kv_heads)
        mask = np.triu(np.full((len(x), len(x)), -np.inf), 1)
        answers = []
        for head in range(self.heads):
            shared = head // (self.heads // self.kv_heads)
            scores = queries[head] @ keys[shared].T / np.sqrt(self.head_size) + mask
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            answers.append(weights / weights.sum(-1, keepdims=True) @ values[shared])
        return self._linear(np.concatenate(answers, -1), f"{name}.attn_output")

    def _rotate(self, x: np.ndarray) -> np.ndarray:
        """Rotate pairs of (heads, tokens, size) by position / base^(2i/size) / divisor."""
        size = self.head_size
        steps = self.rope_base ** (np.arange(0, size, 2) / size) * self.divisors
        angles = np.arange(x.shape[1])[:, None] / steps
        one = slice(0, None, 2) if self.is_interleaved else slice(0, size // 2)
        two = slice(1, None, 2) if self.is_interleaved else slice(size // 2, None)
        turned = np.empty_like(x)
        turned[..., one] = x[..., one] * np.cos(angles) - x[..., two] * np.sin(angles)
        turned[..., two] = x[..., one] * np.sin(angles) + x[..., two] * np.cos(angles)
        return turned

    def _feed_forward(self, name: str, x: np.ndarray) -> np.ndarray:
        gate, up = self._linear(x, f"{name}.ffn_gate"), self._linear(x, f"{name}.ffn_up")
        return self._linear(gate / (1 + np.exp(-gate)) * up, f"{name}.ffn_down")
