"""GGUF to ONNX, weight for weight: every quantised value keeps exactly its meaning.

The graph is one for the Llama family: packed attention with rotary positions, gated feed-forward,
RMS norms. How weights of each kind are held is in `miner.models.packing` and `.linear`.

Rotary positions: GGUF keeps the rows of a Llama's Q and K interleaved (x0 y0 x1 y1 …), the graph
wants halves (x0 x1 … y0 y1 …); the rows are reordered back, which moves no value within a row.

The same GGUF gives the same bytes on every machine: weights are only repacked, and what is
computed (rotary tables) uses operations whose rounding IEEE 754 fixes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from onnx import TensorProto, helper

from miner.errors import ModelFormatError, UnsupportedModelError
from miner.models.gguf import GgufFile
from miner.models.graph import DATA_FILE, GraphWriter
from miner.models.kinds import TensorKind
from miner.models.linear import F32, WeightWriter
from miner.models.llama import LlamaShape, genai_config, read_shape
from miner.models.matrix import Matrix, Rows, can_join, halves_order, refuse_infinite
from miner.models.rotary import rotary_tables
from miner.models.tokenizer_files import build_tokenizer_files

Head = Literal["int8", "fp32"]
"""How the head multiplies. fp32: plainly, on weights unpacked to fp32. int8: on the packed weights
with integer arithmetic, the input given as the sum of two 8-bit parts."""
Progress = Callable[[str], None]
"""Gets one line for people at each step."""

_GATED: Final = ("gate", "up")


def write_model(
    gguf: GgufFile,
    directory: Path,
    *,
    head: Head = "int8",
    context: int | None = None,
    chat_template: str | None = None,
    progress: Progress = lambda _: None,
) -> None:
    """Write the model in genai layout into an existing empty directory.

    Args:
        gguf: the model.
        directory: where to write.
        head: how logits are computed.
        context: most tokens of prompt and answer together; None: as many as the file says.
        chat_template: takes the place of the file's own.
        progress: told of each layer.

    Raises:
        ModelFormatError: the GGUF lacks something or contradicts itself.
        UnsupportedModelError: a model this converter does not know.
        OSError: the directory cannot be written.
    """
    shape = read_shape(gguf, context=context)
    tokenizer, tokenizer_config = build_tokenizer_files(gguf, shape, chat_template=chat_template)
    with (directory / DATA_FILE).open("wb") as data_file:
        converter = _Converter(gguf, shape, GraphWriter(data_file), progress)
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

    def __init__(
        self, gguf: GgufFile, shape: LlamaShape, graph: GraphWriter, progress: Progress
    ) -> None:
        self.gguf = gguf
        self.shape = shape
        self.graph = graph
        self.weights = WeightWriter(graph)
        self.progress = progress
        self.used: set[str] = set()

    def convert(self, head: Head) -> bytes:
        shape = self.shape
        self._declare_faces()
        self._sequence_lengths()
        self._rotary()
        embedding = self._matrix("token_embd", shape.vocabulary, shape.hidden)
        residual = self.weights.embed(embedding)
        normed = self.graph.node(
            "SimplifiedLayerNormalization",
            [residual, self._norm_weight("blk.0.attn_norm", shape.hidden)],
            ["blk.0.attn_norm/output"],
            axis=-1,
            epsilon=shape.epsilon,
            stash_type=1,
        )
        for layer in range(shape.layers):
            self.progress(f"layer {layer + 1} of {shape.layers}")
            last = layer + 1 == shape.layers
            following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
            attended = self._attention(layer, normed)
            normed, residual = self._add_and_norm(f"blk.{layer}.ffn_norm", residual, attended)
            fed = self._feed_forward(layer, normed)
            normed, residual = self._add_and_norm(following, residual, fed)
        self.progress("head")
        is_tied = "output.weight" not in self.gguf.tensors
        output = embedding if is_tied else self._matrix("output", shape.vocabulary, shape.hidden)
        self.weights.head(output, normed, is_tied=is_tied, is_plain=head == "fp32")
        self._refuse_unused()
        return self.graph.serialize()

    def _refuse_unused(self) -> None:
        if unused := sorted(self.gguf.tensors.keys() - self.used):
            raise UnsupportedModelError(
                f"the model has {len(unused)} tensors that a {self.shape.architecture} model of "
                f"this converter lacks, such as {unused[0]!r:.80}"
            )

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
        shape, divisors = self.shape, [self.shape.rope_divisor] * (self.shape.head_size // 2)
        if "rope_freqs.weight" in self.gguf.tensors:
            given = self._vector("rope_freqs.weight", shape.head_size // 2)
            divisors = [one * float(each) for one, each in zip(divisors, given, strict=True)]
        if not all(0 < divisor < 1e6 for divisor in divisors):
            raise ModelFormatError("GGUF tensor 'rope_freqs.weight': factors out of bounds")
        is_scaled = any(divisor != 1 for divisor in divisors)
        cosines, sines = rotary_tables(
            head_size=shape.head_size,
            context=shape.context,
            base=shape.rope_base,
            divisors=divisors if is_scaled else (),
        )
        self.graph.constant("cos_cache", cosines)
        self.graph.constant("sin_cache", sines)

    def _vector(self, name: str, size: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        found = self.gguf.tensor(name, (size,))
        self.used.add(name)
        if found.kind is TensorKind.F32 or found.kind is TensorKind.F16:
            return refuse_infinite(name, found.blocks.astype(np.float32))
        raise UnsupportedModelError(f"GGUF tensor {name!r}: expected F32, got {found.kind.name}")

    def _norm_weight(self, name: str, size: int) -> str:
        return self.graph.constant(f"{name}.weight", self._vector(f"{name}.weight", size))

    def _add_and_norm(self, name: str, residual: str, added: str) -> tuple[str, str]:
        """Add to the residual and normalise: the normed value and the new residual."""
        new_residual = f"{name}/residual"
        normed = self.graph.contrib(
            "SkipSimplifiedLayerNormalization",
            [residual, added, self._norm_weight(name, self.shape.hidden)],
            [f"{name}/output", "", "", new_residual],
            epsilon=self.shape.epsilon,
        )
        return normed, new_residual

    def _attention(self, layer: int, normed: str) -> str:
        shape, name = self.shape, f"blk.{layer}"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        attended = self.graph.contrib(
            "GroupQueryAttention",
            [
                *self._queries_keys_values(name, normed),
                *past,
                "seqlens_k",
                "total_length",
                "cos_cache",
                "sin_cache",
            ],
            [f"{name}.attention/output", *present],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        output = self._rows(f"{name}.attn_output", shape.hidden, shape.heads * shape.head_size)
        return self._linear(f"{name}.attn_output", [output], attended)

    def _queries_keys_values(self, name: str, normed: str) -> list[str]:
        """Packed into one value if that can be, else three."""
        shape = self.shape
        parts = {
            part: self._rows(f"{name}.attn_{part}", heads * shape.head_size, shape.hidden, turn)
            for part, heads, turn in (
                ("q", shape.heads, shape.heads),
                ("k", shape.kv_heads, shape.kv_heads),
                ("v", shape.kv_heads, 0),
            )
        }
        if can_join(list(parts.values())) and not shape.has_head_norms:
            return [self._linear(f"{name}.attn_qkv", list(parts.values()), normed), "", ""]
        values = {p: self._linear(f"{name}.attn_{p}", [rows], normed) for p, rows in parts.items()}
        if shape.has_head_norms:
            for part in ("q", "k"):
                values[part] = self._norm_heads(f"{name}.attn_{part}_norm", values[part])
        return list(values.values())

    def _norm_heads(self, name: str, value: str) -> str:
        graph, size = self.graph, self.shape.head_size
        by_head = graph.constant(f"{name}.heads", np.array([0, 0, -1, size], np.int64))
        flat = graph.constant(f"{name}.flat", np.array([0, 0, -1], np.int64))
        heads = graph.node("Reshape", [value, by_head], [f"{name}/heads"])
        normed = graph.node(
            "SimplifiedLayerNormalization",
            [heads, self._norm_weight(name, size)],
            [f"{name}/normed"],
            axis=-1,
            epsilon=self.shape.epsilon,
            stash_type=1,
        )
        return graph.node("Reshape", [normed, flat], [f"{name}/output"])

    def _feed_forward(self, layer: int, normed: str) -> str:
        graph, shape, name = self.graph, self.shape, f"blk.{layer}.ffn"
        pair = [self._rows(f"{name}_{p}", shape.feed_forward, shape.hidden) for p in _GATED]
        gate, up = f"{name}/gate", f"{name}/up"
        if can_join(pair):
            packed = self._linear(f"{name}_gate_up", pair, normed)
            graph.node("Split", [packed], [gate, up], axis=-1, num_outputs=2)
        else:
            gate, up = (
                self._linear(f"{name}_{part}", [rows], normed)
                for part, rows in zip(_GATED, pair, strict=True)
            )
        sigmoid = graph.node("Sigmoid", [gate], [f"{name}/sigmoid"])
        silu = graph.node("Mul", [gate, sigmoid], [f"{name}/silu"])
        product = graph.node("Mul", [silu, up], [f"{name}/product"])
        down = self._rows(f"{name}_down", shape.hidden, shape.feed_forward)
        return self._linear(f"{name}_down", [down], product)

    def _matrix(self, name: str, outputs: int, inputs: int) -> Matrix:
        return Matrix([self._rows(name, outputs, inputs)])

    def _rows(self, name: str, outputs: int, inputs: int, heads: int = 0) -> Rows:
        """A tensor's matrix; `heads`: of rotary positions, whose rows may be interleaved."""
        self.used.add(f"{name}.weight")
        tensor = self.gguf.tensor(f"{name}.weight", (outputs, inputs))
        is_turned = heads and self.shape.is_interleaved
        order = halves_order(outputs, heads) if is_turned else None
        return Rows(name=name, tensor=tensor, order=order)

    def _linear(self, name: str, parts: Sequence[Rows], value: str) -> str:
        """Multiply by matrices below each other, and add their biases if there are any."""
        product = self.weights.multiply(name, Matrix(parts), value)
        if not any(f"{part.name}.bias" in self.gguf.tensors for part in parts):
            return product
        bias = np.concatenate([self._bias(part) for part in parts])
        return self.graph.node(
            "Add", [product, self.graph.constant(f"{name}.bias", bias)], [f"{name}/biased"]
        )

    def _bias(self, part: Rows) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        size = part.tensor.shape[0]
        if f"{part.name}.bias" not in self.gguf.tensors:
            return np.zeros(size, np.float32)
        bias = self._vector(f"{part.name}.bias", size)
        return bias if part.order is None else bias[part.order]
