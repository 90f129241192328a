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
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from miner.errors import UnsupportedModelError
from miner.models.gguf import BLOCK, GgufFile, TensorKind
from miner.models.tokenizer_files import build_tokenizer_files

Head = Literal["int8", "fp32"]
"""How the head multiplies. fp32: plainly, on weights unpacked to 228 MB. int8: on the packed
weights with integer arithmetic, the input given as the sum of two 8-bit parts (`_head_int8`)."""

F32: Final = TensorProto.FLOAT
MICROSOFT: Final = "com.microsoft"
DATA_FILE: Final = "model.onnx.data"
INLINE_BYTES: Final = 1_024
"""Tensors up to this size stay inside model.onnx."""
ALIGNMENT: Final = 4_096
"""Offsets in the data file are whole pages, so that a runtime can map them."""
OPSET: Final = 18
IR_VERSION: Final = 9


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
        UnsupportedModelError: not a plain Llama of Q4_1 layers.
    """
    architecture = gguf.value("general.architecture", str)
    if architecture != "llama":
        raise UnsupportedModelError(f"only Llama models are converted, not {architecture!r}")
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
    if min(shape.layers, shape.hidden, shape.heads, shape.kv_heads) < 1 or (
        shape.hidden % shape.heads or shape.heads % shape.kv_heads or shape.head_size % 2
    ):
        raise UnsupportedModelError(f"attention heads do not divide the width: {shape}")
    if any(key.startswith("llama.rope.scaling") for key in gguf.metadata):
        raise UnsupportedModelError("scaled rotary positions are not converted")
    return shape


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
        graph = _GraphWriter(data_file)
        _write_graph(graph, gguf, shape, head)
    model = helper.make_model(
        graph.finish(),
        producer_name="aitbc",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    (directory / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    for name, content in (
        ("genai_config.json", _genai_config(gguf, shape)),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / name).write_text(text + "\n", encoding="utf-8", newline="\n")


class _GraphWriter:
    """Collects nodes; puts large tensors into the data file as they come."""

    def __init__(self, data_file: Any) -> None:  # noqa: ANN401 - a binary file object
        self._data_file = data_file
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Store a tensor and return its name."""
        raw = np.ascontiguousarray(values).tobytes()
        tensor = TensorProto(
            name=name,
            dims=values.shape,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
        )
        if len(raw) <= INLINE_BYTES:
            tensor.raw_data = raw
        else:
            self._data_file.write(bytes(-self._data_file.tell() % ALIGNMENT))
            place = {"location": DATA_FILE, "offset": self._data_file.tell(), "length": len(raw)}
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._data_file.write(raw)
        self._tensors.append(tensor)
        return name

    def node(
        self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any  # noqa: ANN401
    ) -> str:
        """Append a node and return the name of its first output."""
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, name=outputs[0] + "/node", **attributes)
        )
        return outputs[0]

    def contrib(
        self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any  # noqa: ANN401
    ) -> str:
        """As `node`, of ONNX Runtime's own operators."""
        return self.node(operator, inputs, outputs, domain=MICROSOFT, **attributes)

    def finish(self) -> onnx.GraphProto:
        """The whole graph."""
        return helper.make_graph(
            self._nodes, "llama", self.inputs, self.outputs, initializer=self._tensors
        )


def _write_graph(graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, head: Head) -> None:
    _declare_faces(graph, shape)
    _sequence_lengths(graph)
    cosines, sines = rotary_tables(shape)
    graph.constant("cos_cache", cosines)
    graph.constant("sin_cache", sines)
    residual = _embedding(graph, gguf, shape)
    normed = graph.node(
        "SimplifiedLayerNormalization",
        [residual, _norm(graph, gguf, shape, "blk.0.attn_norm")],
        ["layers.0/attn_norm"],
        axis=-1,
        epsilon=shape.epsilon,
        stash_type=1,
    )
    for layer in range(shape.layers):
        last = layer + 1 == shape.layers
        attended = _attention(graph, gguf, shape, layer, normed)
        normed, residual = _skip_norm(
            graph, gguf, shape, f"blk.{layer}.ffn_norm", residual, attended
        )
        fed = _feed_forward(graph, gguf, shape, layer, normed)
        following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
        normed, residual = _skip_norm(graph, gguf, shape, following, residual, fed)
    _head(graph, gguf, shape, head, normed)


def _declare_faces(graph: _GraphWriter, shape: LlamaShape) -> None:
    def value(name: str, kind: int, dimensions: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, dimensions)

    graph.inputs = [
        value("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        value("attention_mask", TensorProto.INT64, ["batch", "total"]),
    ]
    graph.outputs = [value("logits", F32, ["batch", "sequence", shape.vocabulary])]
    for layer in range(shape.layers):
        for part in ("key", "value"):
            for face, list_, length in (
                ("past_key_values", graph.inputs, "past"),
                ("present", graph.outputs, "present"),
            ):
                dimensions: list[str | int] = ["batch", shape.kv_heads, length, shape.head_size]
                list_.append(value(f"{face}.{layer}.{part}", F32, dimensions))


def _sequence_lengths(graph: _GraphWriter) -> None:
    """From the mask of each row: its length so far less one, and the longest of all rows."""
    last_axis = graph.constant("axis.last", np.array([-1], np.int64))
    one = graph.constant("one", np.array([1], np.int64))
    lengths = graph.node(
        "ReduceSum", ["attention_mask", last_axis], ["row_lengths"], keepdims=0
    )
    less_one = graph.node("Sub", [lengths, one], ["row_lengths_less_one"])
    graph.node("Cast", [less_one], ["seqlens_k"], to=TensorProto.INT32)
    mask_shape = graph.node("Shape", ["attention_mask"], ["mask_shape"])
    index = graph.constant("index.one", np.array(1, np.int64))
    total = graph.node("Gather", [mask_shape, index], ["total_length_long"], axis=0)
    graph.node("Cast", [total], ["total_length"], to=TensorProto.INT32)


def _embedding(graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape) -> str:
    blocks = gguf.tensor("token_embd.weight", TensorKind.Q8_0, (shape.vocabulary, shape.hidden))
    quants = (blocks["q"].astype(np.int16) + 128).astype(np.uint8)
    graph.constant("embedding.weight", quants)
    graph.constant("embedding.scale", blocks["d"].astype(np.float32))
    zero = graph.constant("embedding.zero", np.array(128, np.float32))
    axis = graph.constant("embedding.axis", np.array([-1], np.int64))
    width = graph.constant("embedding.width", np.array([0, 0, shape.hidden], np.int64))
    rows = graph.node("Gather", ["embedding.weight", "input_ids"], ["embedding/rows"], axis=0)
    scales = graph.node("Gather", ["embedding.scale", "input_ids"], ["embedding/scales"], axis=0)
    floats = graph.node("Cast", [rows], ["embedding/floats"], to=F32)
    centred = graph.node("Sub", [floats, zero], ["embedding/centred"])
    column = graph.node("Unsqueeze", [scales, axis], ["embedding/column"])
    scaled = graph.node("Mul", [centred, column], ["embedding/scaled"])
    return graph.node("Reshape", [scaled, width], ["embedding/output"])


def _norm(graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, name: str) -> str:
    weights = gguf.tensor(f"{name}.weight", TensorKind.F32, (shape.hidden,))
    return graph.constant(f"{name}.weight", weights)


def _skip_norm(
    graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, name: str, residual: str, added: str
) -> tuple[str, str]:
    """Add to the residual and normalise; the names of the normed value and the new residual."""
    new_residual = f"{name}/residual"
    normed = graph.contrib(
        "SkipSimplifiedLayerNormalization",
        [residual, added, _norm(graph, gguf, shape, name)],
        [f"{name}/output", "", "", new_residual],
        epsilon=shape.epsilon,
    )
    return normed, new_residual


def _attention(
    graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, layer: int, normed: str
) -> str:
    kv_width = shape.kv_heads * shape.head_size
    blocks = [
        _halved(gguf, f"blk.{layer}.attn_q.weight", shape.hidden, shape.hidden, shape.heads),
        _halved(gguf, f"blk.{layer}.attn_k.weight", kv_width, shape.hidden, shape.kv_heads),
        gguf.tensor(f"blk.{layer}.attn_v.weight", TensorKind.Q4_1, (kv_width, shape.hidden)),
    ]
    packed = _linear(graph, f"layers.{layer}/qkv", np.concatenate(blocks), normed)
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for part in ("key", "value")]
    attended = graph.contrib(
        "GroupQueryAttention",
        [packed, "", "", *past, "seqlens_k", "total_length", "cos_cache", "sin_cache"],
        [f"layers.{layer}/attention", *present],
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
    )
    output = gguf.tensor(
        f"blk.{layer}.attn_output.weight", TensorKind.Q4_1, (shape.hidden, shape.hidden)
    )
    return _linear(graph, f"layers.{layer}/attention_output", output, attended)


def _feed_forward(
    graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, layer: int, normed: str
) -> str:
    name = f"layers.{layer}"
    wide = (shape.feed_forward, shape.hidden)
    pair = [
        gguf.tensor(f"blk.{layer}.ffn_{part}.weight", TensorKind.Q4_1, wide)
        for part in ("gate", "up")
    ]
    packed = _linear(graph, f"{name}/gate_up", np.concatenate(pair), normed)
    halves = [f"{name}/gate", f"{name}/up"]
    graph.node("Split", [packed], halves, axis=-1, num_outputs=2)
    sigmoid = graph.node("Sigmoid", [halves[0]], [f"{name}/sigmoid"])
    silu = graph.node("Mul", [halves[0], sigmoid], [f"{name}/silu"])
    product = graph.node("Mul", [silu, halves[1]], [f"{name}/product"])
    down = gguf.tensor(
        f"blk.{layer}.ffn_down.weight", TensorKind.Q4_1, (shape.hidden, shape.feed_forward)
    )
    return _linear(graph, f"{name}/down", down, product)


def _linear(graph: _GraphWriter, name: str, blocks: NDArray[Any], value: str) -> str:
    """value @ weights.T for Q4_1 blocks of shape (outputs, inputs / 32)."""
    outputs, count = blocks.shape
    low, high = blocks["q"] & 15, blocks["q"] >> 4
    quants = np.concatenate([low, high], axis=-1)
    packed = (quants[..., 0::2] | (quants[..., 1::2] << 4)).astype(np.uint8)
    scale = blocks["d"].astype(np.float32)
    rest = blocks["m"].astype(np.float32) + 8 * scale
    main = graph.contrib(
        "MatMulNBits",
        [
            value,
            graph.constant(f"{name}.weight", packed),
            graph.constant(f"{name}.scale", scale),
        ],
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
    rest_name = graph.constant(f"{name}.rest", rest.T)
    correction = graph.node("MatMul", [sums, rest_name], [f"{name}/correction"])
    return graph.node("Add", [main, correction], [f"{name}/output"])


def _head(
    graph: _GraphWriter, gguf: GgufFile, shape: LlamaShape, head: Head, normed: str
) -> None:
    if "output.weight" in gguf.tensors:
        raise UnsupportedModelError("a head apart from the embedding is not converted")
    if head == "int8":
        _head_int8(graph, shape, normed)
        return
    blocks = gguf.tensor("token_embd.weight", TensorKind.Q8_0, (shape.vocabulary, shape.hidden))
    weights = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[..., None]
    name = graph.constant("head.weight", weights.reshape(shape.vocabulary, shape.hidden).T)
    graph.node("MatMul", [normed, name], ["logits"])


def _head_int8(graph: _GraphWriter, shape: LlamaShape, normed: str) -> None:
    """Integer arithmetic without its error.

    accuracy_level 4 rounds the input to 8 bits per block, which alone turns close calls of
    greedy decoding (error 5e-3). So the input is split into its own 8-bit rounding, which the
    operator then represents exactly, and the remainder, whose rounding error is 250 times
    smaller. Both go through as rows of one batch: the weights are read once.
    """
    blocks = np.array([0, 0, shape.hidden // BLOCK, BLOCK], np.int64)
    shapes = graph.constant("head.blocks", blocks)
    flat = graph.constant("head.flat", np.array([0, 0, shape.hidden], np.int64))
    levels = graph.constant("head.levels", np.array(127, np.float32))
    tiny = graph.constant("head.tiny", np.array(1e-30, np.float32))
    parts = graph.node("Reshape", [normed, shapes], ["head/parts"])
    sizes = graph.node("Abs", [parts], ["head/sizes"])
    largest = graph.node("ReduceMax", [sizes, "axis.last"], ["head/largest"], keepdims=1)
    nonzero = graph.node("Max", [largest, tiny], ["head/nonzero"])
    step = graph.node("Div", [nonzero, levels], ["head/step"])
    scaled = graph.node("Div", [parts, step], ["head/scaled"])
    rounded = graph.node("Round", [scaled], ["head/rounded"])
    coarse = graph.node("Mul", [rounded, step], ["head/coarse"])
    fine = graph.node("Sub", [parts, coarse], ["head/fine"])
    rows = [
        graph.node("Reshape", [part, flat], [f"{part}/row"]) for part in (coarse, fine)
    ]
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


def _halved(gguf: GgufFile, name: str, rows: int, columns: int, heads: int) -> NDArray[Any]:
    """Rows of Q or K from interleaved pairs to halves, head by head."""
    blocks = gguf.tensor(name, TensorKind.Q4_1, (rows, columns))
    pairs = blocks.reshape(heads, rows // heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows, -1)


def rotary_tables(shape: LlamaShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of position * frequency; both of shape (context, head_size / 2).

    Frequencies and angles are rounded to float32, as the model's training code did.
    """
    size, base = shape.head_size, Decimal(shape.rope_base)
    frequencies = np.array(
        [float(1 / base ** (Decimal(2 * i) / size)) for i in range(size // 2)], np.float32
    )
    angles = np.arange(shape.context, dtype=np.float32)[:, None] * frequencies
    return _cosine_and_sine(angles.astype(np.float64))


def _cosine_and_sine(
    angles: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """By Taylor series about the nearest quarter turn, right to float32.

    The C library's functions differ in their last bit between machines, which would change the
    model's digest; sums and products do not.
    """
    quarter_high, quarter_low = 1.5707963267341256, 6.077100506506192e-11
    turns = np.rint(angles * 0.6366197723675814)
    rest = (angles - turns * quarter_high) - turns * quarter_low
    square = rest * rest
    cosine, sine = np.ones_like(rest), np.ones_like(rest)
    for power in range(18, 0, -2):
        cosine = 1.0 - cosine * square / (power * (power - 1))
        sine = 1.0 - sine * square / (power * (power + 1))
    sine = sine * rest
    quadrant = turns.astype(np.int64) % 4
    cosines = np.choose(quadrant, [cosine, -sine, -cosine, sine])
    sines = np.choose(quadrant, [sine, cosine, -sine, -cosine])
    return cosines.astype(np.float32), sines.astype(np.float32)


def _genai_config(gguf: GgufFile, shape: LlamaShape) -> dict[str, Any]:
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
