"""Small models of the Llama family as GGUF files, of weights whose meaning others have read.

Their matrices are put together from the blocks of tests/vectors/gguf_kinds.json.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from miner.models.kinds import TensorKind
from tests.llama_reference import LlamaReference
from tests.tiny_model import METADATA, TOKENS, write_gguf

HIDDEN, WIDE, LAYERS, BASE, EPSILON = 256, 512, 2, 5_000.0, 1e-5
VECTORS = json.loads(Path("tests/vectors/gguf_kinds.json").read_text(encoding="ascii"))["kinds"]


def read_vector(kind: TensorKind) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of a kind, and the weights in each: shape (blocks, weights)."""
    stored = {name: base64.b64decode(text) for name, text in VECTORS[kind.name].items()}
    blocks = np.frombuffer(stored["blocks"], kind.record)
    return blocks, np.frombuffer(stored["weights"], "<f4").reshape(len(blocks), -1)


class Family:
    """One model: `gguf` is the file, `reference` what it must compute."""

    def __init__(
        self,
        kinds: Mapping[str, TensorKind],
        *,
        architecture: str = "llama",
        heads: int = 4,
        kv_heads: int = 2,
        head_size: int = 64,
        metadata: Mapping[str, object] = {},
        has_output: bool = False,
        has_biases: bool = False,
        has_head_norms: bool = False,
        divisors: np.ndarray | None = None,
    ) -> None:
        """`kinds` by what a tensor's name contains; "" is the kind of all others."""
        self._random = np.random.default_rng(3)
        self._kinds = kinds
        self.tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
        self._weights: dict[str, np.ndarray] = {}
        sizes = {"q": heads * head_size, "k": kv_heads * head_size, "v": kv_heads * head_size}
        self._matrix("token_embd", len(TOKENS), HIDDEN)
        self._vector("output_norm.weight", HIDDEN)
        if has_output:
            self._matrix("output", len(TOKENS), HIDDEN)
        for name in [f"blk.{layer}" for layer in range(LAYERS)]:
            self._vector(f"{name}.attn_norm.weight", HIDDEN)
            self._vector(f"{name}.ffn_norm.weight", HIDDEN)
            for part, size in sizes.items():
                self._matrix(f"{name}.attn_{part}", size, HIDDEN)
                if has_biases:
                    self._vector(f"{name}.attn_{part}.bias", size)
            if has_head_norms:
                self._vector(f"{name}.attn_q_norm.weight", head_size)
                self._vector(f"{name}.attn_k_norm.weight", head_size)
            self._matrix(f"{name}.attn_output", HIDDEN, heads * head_size)
            self._matrix(f"{name}.ffn_gate", WIDE, HIDDEN)
            self._matrix(f"{name}.ffn_up", WIDE, HIDDEN)
            self._matrix(f"{name}.ffn_down", HIDDEN, WIDE)
        if divisors is not None:
            self.tensors["rope_freqs.weight"] = _plain(divisors)
        self.metadata: dict[str, object] = {
            key: value for key, value in METADATA.items() if not key.startswith("llama.")
        }
        self.metadata |= {"general.architecture": architecture}
        self.metadata |= {
            f"{architecture}.{key}": value
            for key, value in {
                "block_count": LAYERS,
                "embedding_length": HIDDEN,
                "feed_forward_length": WIDE,
                "attention.head_count": heads,
                "attention.head_count_kv": kv_heads,
                "attention.key_length": head_size,
                "attention.value_length": head_size,
                "rope.dimension_count": head_size,
                "context_length": 64,
                "rope.freq_base": BASE,
                "attention.layer_norm_rms_epsilon": EPSILON,
                **metadata,
            }.items()
        }
        factor = metadata.get("rope.scaling.factor", 1.0)
        assert isinstance(factor, float)
        self.reference = LlamaReference(
            weights=self._weights,
            layers=LAYERS,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            rope_base=BASE,
            epsilon=EPSILON,
            is_interleaved=architecture == "llama",
            divisors=factor * (np.ones(1) if divisors is None else divisors),
        )

    @property
    def gguf(self) -> bytes:
        return write_gguf(self.metadata, self.tensors)

    def _vector(self, name: str, size: int) -> None:
        values = self._random.uniform(0.5, 1.5, size).astype("<f4")
        self.tensors[name] = _plain(values)
        self._weights[name] = values.astype(np.float64)

    def _matrix(self, name: str, rows: int, columns: int) -> None:
        kind = next(k for part, k in self._kinds.items() if part in name)
        blocks, weights = read_vector(kind)
        count = columns // weights.shape[1]
        chosen = self._random.integers(0, len(blocks), (rows, count))
        self.tensors[f"{name}.weight"] = (int(kind), (rows, columns), blocks[chosen].tobytes())
        self._weights[f"{name}.weight"] = weights[chosen].reshape(rows, columns).astype(np.float64)


def _plain(values: np.ndarray) -> tuple[int, tuple[int, ...], bytes]:
    return 0, values.shape, values.astype("<f4").tobytes()
