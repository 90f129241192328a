"""GGUF Llama to ONNX, weight for weight: every quantised value keeps exactly its meaning.

Q4_1 stores d*q + m per block of 32. MatMulNBits computes d*(q - 8), so the rest, (m + 8d) times
the block's sum of inputs, is a small MatMul of block sums. Q8_0 stores d*q, which is MatMulNBits
with 8 bits and zero point 128. The token embedding and the head share that one tensor.

Rotary positions: GGUF keeps the rows of Q and K interleaved (x0 y0 x1 y1 …), the graph wants
halves (x0 x1 … y0 y1 …); the rows are reordered back, which moves no value within a row.

The same GGUF gives the same bytes on every machine: weights are only repacked, and what is
computed (rotary tables) uses operations whose rounding IEEE 754 fixes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from miner.models.gguf import BLOCK, GgufFile, TensorKind
from miner.models.graph import DATA_FILE, GraphWriter
from miner.models.llama import LlamaShape, genai_config, read_shape
from miner.models.rotary import rotary_tables
from miner.models.tokenizer_files import build_tokenizer_files

Head = Literal["int8", "fp32"]
"""How the head multiplies. fp32: plainly, on weights unpacked to 228 MB. int8: on the packed
weights with integer arithmetic, the input given as the sum of two 8-bit parts."""

F32: Final = TensorProto.FLOAT
_GATED: Final = ("gate", "up")


def write_model(gguf: GgufFile, directory: Path, *, head: Head = "int8") -> None:
    """Write the model in genai layout into an existing empty directory.

    Raises:
        ModelFormatError: the GGUF lacks something or contradicts itself.
        UnsupportedModelError: a model this converter does not know.
        OSError: the directory cannot be written.
    """
    shape = read_shape(gguf)
    tokenizer, tokenizer_config = build_tokenizer_files(gguf)
    with (directory / DATA_FILE).open("wb") as data_file:
        converter = _Converter(gguf, shape, GraphWriter(data_file))
        (directory / "model.onnx").write_bytes(converter.convert(head))
    for name, content in (
        ("genai_config.json", genai_config(gguf, shape)),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / name).write_text(text + "\n", encoding="utf-8", newline="\n")


class _Converter:
    """Writes one model's graph. Methods take and return names of values in it."""

    def __init__(self, gguf: GgufFile, shape: LlamaShape, graph: GraphWriter) -> None:
        self.gguf = gguf
        self.shape = shape
        self.graph = graph

    def convert(self, head: Head) -> bytes:
        self._declare_faces()
        self._sequence_lengths()
        self._rotary()
        residual = self._embedding()
        normed = self.graph.node(
            "SimplifiedLayerNormalization",
            [residual, self._norm_weight("blk.0.attn_norm")],
            ["blk.0.attn_norm/output"],
            axis=-1,
            epsilon=self.shape.epsilon,
            stash_type=1,
        )
        for layer in range(self.shape.layers):
            last = layer + 1 == self.shape.layers
            following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
            attended = self._attention(layer, normed)
            normed, residual = self._add_and_norm(f"blk.{layer}.ffn_norm", residual, attended)
            fed = self._feed_forward(layer, normed)
            normed, residual = self._add_and_norm(following, residual, fed)
        if head == "int8":
            self._head_int8(normed)
        else:
            self._head_fp32(normed)
        return self.graph.serialize()

    def _declare_faces(self) -> None:
        value, shape = helper.make_tensor_value_info, self.shape
        self.graph.inputs = [
            value("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            value("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        self.graph.outputs = [value("logits", F32, ["batch", "sequence", shape.vocabulary])]
        for name in [f"{n}.{part}" for n in range(shape.layers) for part in ("key", "value")]:
            for face, values, length in (
                ("past_key_values", self.graph.inputs, "past"),
                ("present", self.graph.outputs, "present"),
            ):
                sizes: list[str | int | None] = ["batch", shape.kv_heads, length, shape.head_size]
                values.append(value(f"{face}.{name}", F32, sizes))

    def _sequence_lengths(self) -> None:
        """From the mask of each row: its length so far less one, and the longest of all rows."""
        graph = self.graph
        last_axis = graph.constant("axis.last", np.array([-1], np.int64))
        one = graph.constant("one", np.array([1], np.int64))
        index = graph.constant("index.one", np.array(1, np.int64))
        lengths = graph.node("ReduceSum", ["attention_mask", last_axis], ["lengths"], keepdims=0)
        less_one = graph.node("Sub", [lengths, one], ["lengths_less_one"])
        graph.node("Cast", [less_one], ["seqlens_k"], to=TensorProto.INT32)
        mask_shape = graph.node("Shape", ["attention_mask"], ["mask_shape"])
        total = graph.node("Gather", [mask_shape, index], ["total_length_long"], axis=0)
        graph.node("Cast", [total], ["total_length"], to=TensorProto.INT32)

    def _rotary(self) -> None:
        cosines, sines = rotary_tables(
            head_size=self.shape.head_size, context=self.shape.context, base=self.shape.rope_base
        )
        self.graph.constant("cos_cache", cosines)
        self.graph.constant("sin_cache", sines)

    def _embedding(self) -> str:
        graph, blocks = self.graph, self._embedding_blocks()
        graph.constant("embedding.weight", (blocks["q"].astype(np.int16) + 128).astype(np.uint8))
        graph.constant("embedding.scale", blocks["d"].astype(np.float32))
        zero = graph.constant("embedding.zero", np.array(128, np.float32))
        axis = graph.constant("embedding.axis", np.array([-1], np.int64))
        width = graph.constant("embedding.width", np.array([0, 0, self.shape.hidden], np.int64))
        rows = graph.node("Gather", ["embedding.weight", "input_ids"], ["embedding/rows"], axis=0)
        scales = graph.node(
            "Gather", ["embedding.scale", "input_ids"], ["embedding/scales"], axis=0
        )
        floats = graph.node("Cast", [rows], ["embedding/floats"], to=F32)
        centred = graph.node("Sub", [floats, zero], ["embedding/centred"])
        column = graph.node("Unsqueeze", [scales, axis], ["embedding/column"])
        scaled = graph.node("Mul", [centred, column], ["embedding/scaled"])
        return graph.node("Reshape", [scaled, width], ["embedding/output"])

    def _embedding_blocks(self) -> NDArray[Any]:
        size = (self.shape.vocabulary, self.shape.hidden)
        return self.gguf.tensor("token_embd.weight", TensorKind.Q8_0, size)

    def _norm_weight(self, name: str) -> str:
        weights = self.gguf.tensor(f"{name}.weight", TensorKind.F32, (self.shape.hidden,))
        return self.graph.constant(f"{name}.weight", weights)

    def _add_and_norm(self, name: str, residual: str, added: str) -> tuple[str, str]:
        """Add to the residual and normalise: the normed value and the new residual."""
        new_residual = f"{name}/residual"
        normed = self.graph.contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, added, self._norm_weight(name)],
            [f"{name}/output", "", "", new_residual],
            epsilon=self.shape.epsilon,
        )
        return normed, new_residual

    def _attention(self, layer: int, normed: str) -> str:
        shape, name = self.shape, f"blk.{layer}"
        kv_width = shape.kv_heads * shape.head_size
        packed = np.concatenate(
            [
                _halved(self._weights(f"{name}.attn_q", shape.hidden, shape.hidden), shape.heads),
                _halved(self._weights(f"{name}.attn_k", kv_width, shape.hidden), shape.kv_heads),
                self._weights(f"{name}.attn_v", kv_width, shape.hidden),
            ]
        )
        qkv = self._linear(f"{name}.attn_qkv", packed, normed)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        attended = self.graph.contrib(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_length", "cos_cache", "sin_cache"],
            [f"{name}.attention/output", *present],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        output = self._weights(f"{name}.attn_output", shape.hidden, shape.hidden)
        return self._linear(f"{name}.attn_output", output, attended)

    def _feed_forward(self, layer: int, normed: str) -> str:
        graph, shape, name = self.graph, self.shape, f"blk.{layer}.ffn"
        pair = [self._weights(f"{name}_{p}", shape.feed_forward, shape.hidden) for p in _GATED]
        packed = self._linear(f"{name}_gate_up", np.concatenate(pair), normed)
        gate, up = f"{name}/gate", f"{name}/up"
        graph.node("Split", [packed], [gate, up], axis=-1, num_outputs=2)
        sigmoid = graph.node("Sigmoid", [gate], [f"{name}/sigmoid"])
        silu = graph.node("Mul", [gate, sigmoid], [f"{name}/silu"])
        product = graph.node("Mul", [silu, up], [f"{name}/product"])
        down = self._weights(f"{name}_down", shape.hidden, shape.feed_forward)
        return self._linear(f"{name}_down", down, product)

    def _weights(self, name: str, outputs: int, inputs: int) -> NDArray[Any]:
        return self.gguf.tensor(f"{name}.weight", TensorKind.Q4_1, (outputs, inputs))

    def _linear(self, name: str, blocks: NDArray[Any], value: str) -> str:
        """Multiply by the transpose of Q4_1 blocks of shape (outputs, inputs / 32)."""
        graph, (outputs, count) = self.graph, blocks.shape
        quants = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=-1)
        packed = (quants[..., 0::2] | (quants[..., 1::2] << 4)).astype(np.uint8)
        scale = blocks["d"].astype(np.float32)
        rest = (blocks["m"].astype(np.float32) + 8 * scale).T
        weight_names = [
            graph.constant(f"{name}.quants", packed),
            graph.constant(f"{name}.scale", scale),
        ]
        main = graph.contrib(
            "MatMulNBits",
            [value, *weight_names],
            [f"{name}/main"],
            K=count * BLOCK,
            N=outputs,
            bits=4,
            block_size=BLOCK,
            accuracy_level=0,
        )
        split = graph.constant(f"{name}.split", np.array([0, 0, count, BLOCK], np.int64))
        parts = graph.node("Reshape", [value, split], [f"{name}/blocks"])
        sums = graph.node("ReduceSum", [parts, "axis.last"], [f"{name}/sums"], keepdims=0)
        rest_name = graph.constant(f"{name}.rest", rest)
        correction = graph.node("MatMul", [sums, rest_name], [f"{name}/correction"])
        return graph.node("Add", [main, correction], [f"{name}/output"])

    def _head_fp32(self, normed: str) -> None:
        blocks = self._embedding_blocks()
        weights = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[..., None]
        flat = weights.reshape(self.shape.vocabulary, self.shape.hidden).T
        self.graph.node("MatMul", [normed, self.graph.constant("head.weight", flat)], ["logits"])

    def _head_int8(self, normed: str) -> None:
        """Integer arithmetic without its error.

        accuracy_level 4 rounds the input to 8 bits per block, which alone turns close calls of
        greedy decoding (relative error 5e-3). So the input is split into its own 8-bit rounding,
        which the operator then represents exactly, and the remainder, whose rounding error is
        250 times smaller. Both go through as rows of one batch: the weights are read once.
        """
        graph, shape = self.graph, self.shape
        blocks = np.array([0, 0, shape.hidden // BLOCK, BLOCK], np.int64)
        by_block = graph.constant("head.blocks", blocks)
        flat = graph.constant("head.flat", np.array([0, 0, shape.hidden], np.int64))
        levels = graph.constant("head.levels", np.array(127, np.float32))
        tiny = graph.constant("head.tiny", np.array(1e-30, np.float32))
        parts = graph.node("Reshape", [normed, by_block], ["head/parts"])
        sizes = graph.node("Abs", [parts], ["head/sizes"])
        largest = graph.node("ReduceMax", [sizes, "axis.last"], ["head/largest"], keepdims=1)
        nonzero = graph.node("Max", [largest, tiny], ["head/nonzero"])
        step = graph.node("Div", [nonzero, levels], ["head/step"])
        scaled = graph.node("Div", [parts, step], ["head/scaled"])
        rounded = graph.node("Round", [scaled], ["head/rounded"])
        coarse = graph.node("Mul", [rounded, step], ["head/coarse"])
        fine = graph.node("Sub", [parts, coarse], ["head/fine"])
        rows = [graph.node("Reshape", [part, flat], [f"{part}_row"]) for part in (coarse, fine)]
        both = graph.node("Concat", rows, ["head/both"], axis=0)
        products = graph.contrib(
            "MatMulNBits",
            [both, "embedding.weight", "embedding.scale"],
            ["head/products"],
            K=shape.hidden,
            N=shape.vocabulary,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,
        )
        halves = ["head/of_coarse", "head/of_fine"]
        graph.node("Split", [products], halves, axis=0, num_outputs=2)
        graph.node("Add", halves, ["logits"])


def _halved(blocks: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of Q or K from interleaved pairs to halves, head by head."""
    rows = len(blocks)
    pairs = blocks.reshape(heads, rows // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows, -1)
