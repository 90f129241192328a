"""A two-layer Llama of random weights as a GGUF file, and what it must compute."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from tests.llama_reference import LlamaReference

LAYERS, HIDDEN, WIDE, HEADS, KV_HEADS, CONTEXT = 2, 128, 192, 4, 2, 64
HEAD = HIDDEN // HEADS
ROPE_BASE, EPSILON = 10_000.0, 1e-5
EOS = 2
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]


def byte_characters() -> list[str]:
    """The printable stand-ins of byte-level BPE for bytes 0 to 255."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


TOKENS = SPECIALS + byte_characters() + ["".join(pair) for pair in MERGES]


@dataclass
class TinyModel:
    """Quantised parts by tensor name; `gguf` is the file."""

    tensors: dict[str, tuple[int, tuple[int, ...], bytes]]
    weights: dict[str, np.ndarray]
    metadata: dict[str, object]

    @property
    def gguf(self) -> bytes:
        return write_gguf(self.metadata, self.tensors)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Shape (tokens, vocabulary)."""
        reference = LlamaReference(
            weights=self.weights,
            layers=LAYERS,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_size=HEAD,
            rope_base=ROPE_BASE,
            epsilon=EPSILON,
        )
        return reference.logits(ids)


def build_tiny_model(seed: int = 1) -> TinyModel:
    random = np.random.default_rng(seed)
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]] = {}
    weights: dict[str, np.ndarray] = {}

    def plain(name: str) -> None:
        values = random.uniform(0.5, 1.5, HIDDEN).astype("<f4")
        tensors[name] = (0, (HIDDEN,), values.tobytes())
        weights[name] = values.astype(np.float64)

    def four_bit(name: str, rows: int, columns: int) -> None:
        blocks = (rows, columns // 32)
        scale = random.uniform(0.01, 0.05, blocks).astype("<f2")
        least = (-8 * scale.astype(float) + random.normal(0, 0.02, blocks)).astype("<f2")
        quants = random.integers(0, 16, (*blocks, 32)).astype(np.uint8)
        record = np.zeros(blocks, [("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
        record["d"], record["m"] = scale, least
        record["q"] = quants[..., :16] | quants[..., 16:] << 4
        tensors[name] = (3, (rows, columns), record.tobytes())
        exact = scale.astype(float)[..., None] * quants + least.astype(float)[..., None]
        weights[name] = exact.reshape(rows, columns)

    scale = random.uniform(0.01, 0.02, (len(TOKENS), HIDDEN // 32)).astype("<f2")
    quants = random.integers(-127, 128, (*scale.shape, 32)).astype(np.int8)
    record = np.zeros(scale.shape, [("d", "<f2"), ("q", "i1", 32)])
    record["d"], record["q"] = scale, quants
    tensors["token_embd.weight"] = (8, (len(TOKENS), HIDDEN), record.tobytes())
    exact = scale.astype(float)[..., None] * quants
    weights["token_embd.weight"] = exact.reshape(len(TOKENS), HIDDEN)
    plain("output_norm.weight")
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        plain(f"{name}.attn_norm.weight")
        plain(f"{name}.ffn_norm.weight")
        four_bit(f"{name}.attn_q.weight", HIDDEN, HIDDEN)
        four_bit(f"{name}.attn_k.weight", KV_HEADS * HEAD, HIDDEN)
        four_bit(f"{name}.attn_v.weight", KV_HEADS * HEAD, HIDDEN)
        four_bit(f"{name}.attn_output.weight", HIDDEN, HIDDEN)
        four_bit(f"{name}.ffn_gate.weight", WIDE, HIDDEN)
        four_bit(f"{name}.ffn_up.weight", WIDE, HIDDEN)
        four_bit(f"{name}.ffn_down.weight", HIDDEN, WIDE)
    return TinyModel(tensors=tensors, weights=weights, metadata=dict(METADATA))


METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": WIDE,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.context_length": CONTEXT,
    "llama.rope.freq_base": ROPE_BASE,
    "llama.attention.layer_norm_rms_epsilon": EPSILON,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * (len(TOKENS) - len(SPECIALS)),
    "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": EOS,
    "tokenizer.ggml.padding_token_id": EOS,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": TEMPLATE,
}


def write_gguf(
    metadata: dict[str, object], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, content) in tensors.items():
        sizes = shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _typed(value: object) -> bytes:
    if isinstance(value, list):
        kind, items = _typed(value[0])[:4], [_typed(item)[4:] for item in value]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(items)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _string(str(value))
