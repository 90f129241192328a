"""The numbers of a model of the Llama family, from its GGUF and into genai_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

from miner.errors import UnsupportedModelError
from miner.models.gguf import GgufFile

T = TypeVar("T")

MAX_CONTEXT: Final = 1 << 20
MAX_LAYERS: Final = 1_024
MAX_HEAD_SIZE: Final = 512
HEAD_STEP: Final = 16
"""What the attention operator with rotary positions asks of a head's width."""

INTERLEAVED: Final = "llama"
ARCHITECTURES: Final = {INTERLEAVED, "qwen2", "qwen3"}
"""By GGUF's name. Only Llama's files hold rotary pairs next to each other."""
TURN_ENDS: Final = {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"}
"""Control tokens that end an answer in every model that has them, whatever its end token is."""
CONTROL: Final = 3
"""GGUF token type of tokens that text never becomes by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """The numbers of a model of the Llama family that its graph needs."""

    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    """Width of one attention head."""
    vocabulary: int
    context: int
    rope_base: float
    rope_divisor: float
    """Positions are divided by this; 1 for most models."""
    epsilon: float
    has_head_norms: bool
    """Whether queries and keys are normalised head by head."""

    @property
    def is_interleaved(self) -> bool:
        """Whether rows of Q and K come as pairs of one rotation."""
        return self.architecture == INTERLEAVED


class _Numbers:
    """The metadata of one architecture."""

    def __init__(self, gguf: GgufFile, architecture: str) -> None:
        self._gguf = gguf
        self._prefix = architecture + "."

    def has(self, name: str) -> bool:
        return self._prefix + name in self._gguf.metadata

    def needed(self, name: str, kind: type[T]) -> T:
        return self._gguf.value(self._prefix + name, kind)

    def optional(self, name: str, default: T) -> T:
        return self._gguf.optional(self._prefix + name, type(default), default)


def read_shape(gguf: GgufFile, *, context: int | None = None) -> LlamaShape:
    """The shape a GGUF file describes, with at most `context` positions.

    Raises:
        ModelFormatError: a number is missing.
        UnsupportedModelError: not a plain model of the Llama family.
    """
    architecture = gguf.value("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"models of architecture {architecture!r:.40} are not converted, only "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    numbers = _Numbers(gguf, architecture)
    shape = _read_numbers(gguf, numbers, architecture, context)
    _check_bounds(shape)
    _refuse_variants(numbers, shape)
    return shape


def _read_numbers(
    gguf: GgufFile, numbers: _Numbers, architecture: str, context: int | None
) -> LlamaShape:
    hidden = numbers.needed("embedding_length", int)
    heads = numbers.needed("attention.head_count", int)
    if heads < 1 or hidden % heads:
        raise UnsupportedModelError(f"{heads} attention heads do not divide the width {hidden}")
    trained = numbers.needed("context_length", int)
    return LlamaShape(
        architecture=architecture,
        layers=numbers.needed("block_count", int),
        hidden=hidden,
        feed_forward=numbers.needed("feed_forward_length", int),
        heads=heads,
        kv_heads=numbers.optional("attention.head_count_kv", heads),
        head_size=numbers.optional("attention.key_length", hidden // heads),
        vocabulary=len(gguf.value("tokenizer.ggml.tokens", list)),
        context=trained if context is None else min(trained, context),
        rope_base=numbers.optional("rope.freq_base", 10_000.0),
        rope_divisor=_rope_divisor(numbers),
        epsilon=numbers.needed("attention.layer_norm_rms_epsilon", float),
        has_head_norms="blk.0.attn_q_norm.weight" in gguf.tensors,
    )


def _rope_divisor(numbers: _Numbers) -> float:
    kind = numbers.optional("rope.scaling.type", "linear")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise UnsupportedModelError(
            f"rotary positions scaled by {kind!r:.40} are not converted, only linear ones and "
            "those of Llama 3.1 (tensor rope_freqs.weight)"
        )
    return numbers.optional("rope.scaling.factor", numbers.optional("rope.scale_linear", 1.0))


def _check_bounds(shape: LlamaShape) -> None:
    counts = (shape.hidden, shape.feed_forward, shape.kv_heads)
    if min(counts) < 1 or not 1 <= shape.layers <= MAX_LAYERS:
        raise UnsupportedModelError(f"numbers out of bounds: {shape}")
    if not 1 <= shape.context <= MAX_CONTEXT:
        raise UnsupportedModelError(f"a context of {shape.context}: expected 1 to {MAX_CONTEXT}")
    # Comparisons that no NaN passes.
    if not (1 < shape.rope_base < 1e12 and 0 < shape.rope_divisor < 1e6 and 0 < shape.epsilon < 1):
        raise UnsupportedModelError(f"numbers out of bounds: {shape}")
    if shape.heads % shape.kv_heads:
        raise UnsupportedModelError(f"{shape.kv_heads} key heads do not divide {shape.heads}")
    if shape.head_size % HEAD_STEP or not HEAD_STEP <= shape.head_size <= MAX_HEAD_SIZE:
        raise UnsupportedModelError(
            f"attention heads {shape.head_size} wide: expected a multiple of {HEAD_STEP} up to "
            f"{MAX_HEAD_SIZE}"
        )


def _refuse_variants(numbers: _Numbers, shape: LlamaShape) -> None:
    """Refuse what would convert to a model that computes something else."""
    if numbers.optional("expert_count", 0):
        raise UnsupportedModelError("mixtures of experts are not converted, only dense models")
    for name in ("attention.value_length", "rope.dimension_count"):
        if numbers.optional(name, shape.head_size) != shape.head_size:
            raise UnsupportedModelError(
                f"{shape.architecture}.{name}: only heads of {shape.head_size}, rotated whole"
            )
    window = numbers.optional("attention.sliding_window", 0)
    if 0 < window < shape.context:
        raise UnsupportedModelError(
            f"attention through a sliding window of {window} tokens is not converted; within the "
            f"window it is ordinary attention: give --context {window}"
        )


def end_tokens(gguf: GgufFile) -> list[int]:
    """Ids that end an answer, the model's end token first."""
    key = "tokenizer.ggml.{}_token_id"
    first = gguf.value(key.format("eos"), int)
    known = {gguf.optional(key.format(name), int, first) for name in ("eot", "eom")}
    tokens = gguf.items("tokenizer.ggml.tokens", str)
    types = gguf.items("tokenizer.ggml.token_type", int)
    named = {
        number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL and token in TURN_ENDS
    }
    return [first, *sorted((known | named) - {first})]


def genai_config(gguf: GgufFile, shape: LlamaShape) -> dict[str, Any]:
    """The description that ONNX Runtime GenAI and `miner.runtime` read."""
    ends = end_tokens(gguf)
    return {
        "model": {
            "type": shape.architecture,
            "bos_token_id": gguf.optional("tokenizer.ggml.bos_token_id", int, ends[0]),
            "eos_token_id": ends if len(ends) > 1 else ends[0],
            "pad_token_id": gguf.optional("tokenizer.ggml.padding_token_id", int, ends[0]),
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
