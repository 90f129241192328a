"""The numbers of a Llama model, from its GGUF and into genai_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from miner.errors import UnsupportedModelError
from miner.models.gguf import GgufFile

MAX_CONTEXT: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The numbers of a Llama model that its graph needs."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float
    epsilon: float

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


def read_shape(gguf: GgufFile) -> LlamaShape:
    """The shape a GGUF file describes.

    Raises:
        ModelFormatError: a number is missing.
        UnsupportedModelError: not a plain Llama.
    """
    architecture = gguf.value("general.architecture", str)
    if architecture != "llama":
        raise UnsupportedModelError(f"only Llama models are converted, not {architecture!r}")
    if any(key.startswith("llama.rope.scaling") for key in gguf.metadata):
        raise UnsupportedModelError("scaled rotary positions are not converted")
    if "output.weight" in gguf.tensors:
        raise UnsupportedModelError("a head apart from the embedding is not converted")
    shape = LlamaShape(
        layers=gguf.value("llama.block_count", int),
        hidden=gguf.value("llama.embedding_length", int),
        feed_forward=gguf.value("llama.feed_forward_length", int),
        heads=gguf.value("llama.attention.head_count", int),
        kv_heads=gguf.value("llama.attention.head_count_kv", int),
        vocabulary=len(gguf.value("tokenizer.ggml.tokens", list)),
        context=gguf.value("llama.context_length", int),
        rope_base=gguf.value("llama.rope.freq_base", float),
        epsilon=gguf.value("llama.attention.layer_norm_rms_epsilon", float),
    )
    counts = (shape.layers, shape.hidden, shape.feed_forward, shape.heads, shape.kv_heads)
    if min(counts) < 1 or not 1 <= shape.context <= MAX_CONTEXT or not shape.rope_base > 1:
        raise UnsupportedModelError(f"numbers out of bounds: {shape}")
    if shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.head_size % 2:
        raise UnsupportedModelError(f"attention heads do not divide the width: {shape}")
    return shape


def genai_config(gguf: GgufFile, shape: LlamaShape) -> dict[str, Any]:
    """The description that ONNX Runtime GenAI and `miner.runtime` read."""
    return {
        "model": {
            "type": "llama",
            "bos_token_id": gguf.value("tokenizer.ggml.bos_token_id", int),
            "eos_token_id": gguf.value("tokenizer.ggml.eos_token_id", int),
            "pad_token_id": gguf.value("tokenizer.ggml.padding_token_id", int),
            "context_length": shape.context,
            "vocab_size": shape.vocabulary,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": "model.onnx",
                "head_size": shape.head_size,
                "hidden_size": shape.hidden,
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "num_hidden_layers": shape.layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": shape.context, "past_present_share_buffer": True},
    }
