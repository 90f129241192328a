"""The tiny Llama of `tests.tiny_model` as the ONNX exports that people download.

Built of the operators that exporters write, node by node, with nothing of the project's converter:
attention by plain operators that join past and new keys, or by GroupQueryAttention; in float32 or
float16; weights in the file or in several beside it; in both layouts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from miner.models.gguf import parse_gguf
from miner.models.llama import read_shape
from miner.models.tokenizer_files import build_tokenizer_files
from tests.tiny_model import (
    CONTEXT,
    EOS,
    EPSILON,
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    ROPE_BASE,
    TOKENS,
    WIDE,
    TinyModel,
)

KINDS = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}


@dataclass
class Export:
    """How one export is made."""

    model: TinyModel
    attention: str = "joined"
    """joined: present is past and new keys in one piece. shared: GroupQueryAttention."""
    dtype: type = np.float32
    head: str = "plain"
    """plain: a MatMul. rounding: MatMulInteger on dynamically quantised inputs."""
    has_positions: bool = True
    forgets_past: bool = False
    """A fault that no shape shows: attention sees the new keys alone."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)

    def build(self) -> onnx.ModelProto:
        kind, value = KINDS[self.dtype], helper.make_tensor_value_info
        faces = [
            value(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ["input_ids", "position_ids"][: 1 + self.has_positions]
        ]
        faces.append(value("attention_mask", TensorProto.INT64, ["batch", "total"]))
        results = [value("logits", TensorProto.FLOAT, ["batch", "sequence", len(TOKENS)])]
        for name in [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]:
            sizes = ["batch", KV_HEADS, "past", HEAD]
            faces.append(value(f"past_key_values.{name}", kind, sizes))
            results.append(value(f"present.{name}", kind, [*sizes[:2], "total", HEAD]))
        self._body()
        graph = helper.make_graph(self.nodes, "tiny", faces, results, initializer=self.tensors)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, ir_version=8, opset_imports=opsets)

    def _body(self) -> None:
        self._positions()
        x = self.op("Gather", self.weight("token_embd.weight"), "input_ids")
        for layer in range(LAYERS):
            name = f"blk.{layer}"
            normed = self._norm(x, f"{name}.attn_norm.weight")
            q, k, v = (self._linear(normed, f"{name}.attn_{part}.weight") for part in "qkv")
            attend = self._shared if self.attention == "shared" else self._joined
            attended = attend(layer, q, k, v)
            x = self.op("Add", x, self._linear(attended, f"{name}.attn_output.weight"))
            normed = self._norm(x, f"{name}.ffn_norm.weight")
            gate, up = (
                self._linear(normed, f"{name}.ffn_{part}.weight") for part in ("gate", "up")
            )
            gated = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), up)
            x = self.op("Add", x, self._linear(gated, f"{name}.ffn_down.weight"))
        normed = self._norm(x, "output_norm.weight")
        logits = (
            self._rounding_head(normed)
            if self.head == "rounding"
            else self._linear(normed, "token_embd.weight")
        )
        self.op("Cast", logits, to=TensorProto.FLOAT, output="logits")

    def op(self, operator: str, *inputs: str, output: str = "", domain: str = "", **options) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], domain=domain, **options))
        return output

    def constant(self, values) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, name: str, *, transposed: bool = False) -> str:
        values = self.model.weights[name].astype(self.dtype)
        stored = f"{name}.transposed" if transposed else name
        if all(tensor.name != stored for tensor in self.tensors):
            values = np.ascontiguousarray(values.T) if transposed else values
            self.tensors.append(numpy_helper.from_array(values, stored))
        return stored

    def _linear(self, x: str, name: str) -> str:
        return self.op("MatMul", x, self.weight(name, transposed=True))

    def _norm(self, x: str, name: str) -> str:
        wide = self.op("Cast", x, to=TensorProto.FLOAT)
        square = self.op("Mul", wide, wide)
        mean = self.op("ReduceMean", square, axes=[-1], keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(np.float32(EPSILON))))
        divided = self.op("Cast", self.op("Div", wide, root), to=KINDS[self.dtype])
        return self.op("Mul", divided, self.weight(name))

    def _positions(self) -> None:
        angles = np.arange(CONTEXT)[:, None] / ROPE_BASE ** (np.arange(0, HEAD, 2) / HEAD)
        self.cosines = self.constant(np.cos(angles).astype(self.dtype))
        self.sines = self.constant(np.sin(angles).astype(self.dtype))
        total = self.op("Gather", self.op("Shape", "attention_mask"), self.constant(1))
        if self.attention == "shared":
            lengths = self.op("ReduceSum", "attention_mask", self.constant([1]), keepdims=0)
            less_one = self.op("Sub", lengths, self.constant([1]))
            self.lengths = self.op("Cast", less_one, to=TensorProto.INT32)
            self.total = self.op("Cast", total, to=TensorProto.INT32)
            return
        if self.has_positions:
            positions = "position_ids"
        else:
            added = self.op("Gather", self.op("Shape", "input_ids"), self.constant(1))
            counted = self.op("Range", self.op("Sub", total, added), total, self.constant(1))
            positions = self.op("Unsqueeze", counted, self.constant([0]))
        self.rotation = [
            self.op("Unsqueeze", self.op("Gather", table, positions), self.constant([2]))
            for table in (self.cosines, self.sines)
        ]
        everywhere = self.op("Range", self.constant(0), total, self.constant(1))
        rows = self.op("Unsqueeze", positions, self.constant([1, 3]))
        seen = self.op("LessOrEqual", everywhere, rows)
        low = self.constant(self.dtype(-1e4))
        self.mask = self.op("Where", seen, self.constant(self.dtype(0)), low)

    def _rotate(self, x: str, heads: int) -> str:
        """(batch, tokens, width) to (batch, heads, tokens, size), pairs turned."""
        cosines, sines = self.rotation
        pairs = self.op("Reshape", x, self.constant([0, 0, heads, HEAD // 2, 2]))
        even, odd = (self.op("Gather", pairs, self.constant(i), axis=4) for i in (0, 1))
        turned = [
            self.op("Sub", self.op("Mul", even, cosines), self.op("Mul", odd, sines)),
            self.op("Add", self.op("Mul", even, sines), self.op("Mul", odd, cosines)),
        ]
        columns = [self.op("Unsqueeze", part, self.constant([4])) for part in turned]
        joined = self.op("Concat", *columns, axis=4)
        whole = self.op("Reshape", joined, self.constant([0, 0, heads, HEAD]))
        return self.op("Transpose", whole, perm=[0, 2, 1, 3])

    def _joined(self, layer: int, q: str, k: str, v: str) -> str:
        queries, new_keys = self._rotate(q, HEADS), self._rotate(k, KV_HEADS)
        split = self.op("Reshape", v, self.constant([0, 0, KV_HEADS, HEAD]))
        new_values = self.op("Transpose", split, perm=[0, 2, 1, 3])
        parts = []
        for part, new in (("key", new_keys), ("value", new_values)):
            past = f"past_key_values.{layer}.{part}"
            if self.forgets_past:
                zero = self.constant(self.dtype(0))
                past = self.op("Mul", past, zero)
            joined = self.op("Concat", past, new, axis=2, output=f"present.{layer}.{part}")
            wide = self.op("Unsqueeze", joined, self.constant([2]))
            copies = self.op("Concat", *[wide] * (HEADS // KV_HEADS), axis=2)
            parts.append(self.op("Reshape", copies, self.constant([0, HEADS, -1, HEAD])))
        keys = self.op("Transpose", parts[0], perm=[0, 1, 3, 2])
        scaled = self.op("Mul", queries, self.constant(self.dtype(HEAD**-0.5)))
        scores = self.op("Add", self.op("MatMul", scaled, keys), self.mask)
        weights = self.op("Softmax", scores, axis=-1)
        answers = self.op("Transpose", self.op("MatMul", weights, parts[1]), perm=[0, 2, 1, 3])
        return self.op("Reshape", answers, self.constant([0, 0, HIDDEN]))

    def _shared(self, layer: int, q: str, k: str, v: str) -> str:
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        inputs = [q, k, v, *past, self.lengths, self.total, self.cosines, self.sines]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                inputs,
                [f"attended.{layer}", *present],
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
                rotary_interleaved=1,
            )
        )
        return f"attended.{layer}"

    def _rounding_head(self, x: str) -> str:
        weights = self.model.weights["token_embd.weight"].T
        scale = np.float32(np.abs(weights).max() / 127)
        quants = np.rint(weights / scale).astype(np.int8)
        names = ["head.q", "head.s", "head.z"]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], names))
        product = self.op("MatMulInteger", names[0], self.constant(quants), names[2])
        scales = self.op("Mul", names[1], self.constant(scale))
        return self.op("Mul", self.op("Cast", product, to=TensorProto.FLOAT), scales)


def write_onnx(model: onnx.ModelProto, file: Path, *, data_files: int = 0) -> None:
    """Write a graph, its large weights in it or in so many files beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 512]
    for number in range(data_files):
        name = f"{file.name}_data" + (f"_{number}" if number else "")
        content = b""
        for tensor in large[number::data_files]:
            place = {"location": name, "offset": len(content), "length": len(tensor.raw_data)}
            content += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
        (file.parent / name).write_bytes(content)
    file.write_bytes(model.SerializeToString())


def write_genai(
    export: Export,
    directory: Path,
    *,
    data_files: int = 1,
    change: Callable[[onnx.ModelProto], None] = lambda _: None,
) -> Path:
    """The layout of ONNX Runtime GenAI; `change` gets the graph before it is written."""
    model = export.build()
    change(model)
    write_onnx(model, directory / "model.onnx", data_files=data_files)
    _write_tokenizer(export.model, directory)
    decoder = {
        "session_options": {"provider_options": [{"cuda": {}}]},
        "filename": "model.onnx",
        "head_size": HEAD,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
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
    }
    model = {
        "bos_token_id": 1,
        "context_length": CONTEXT,
        "decoder": decoder,
        "eos_token_id": [EOS, 0],
        "pad_token_id": EOS,
        "type": "llama",
        "vocab_size": len(TOKENS),
    }
    _write(directory / "genai_config.json", {"model": model, "search": {"top_k": 50}})
    return directory


def write_transformers_js(
    exports: dict[str, Export], directory: Path, *, data_files: int = 0
) -> Path:
    """The layout of transformers.js: a name in onnx/ for each export."""
    for name, export in exports.items():
        write_onnx(export.build(), directory / "onnx" / name, data_files=data_files)
    _write_tokenizer(next(iter(exports.values())).model, directory)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": 99,
        "head_dim": HEAD,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "max_position_embeddings": CONTEXT,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": len(TOKENS),
    }
    _write(directory / "config.json", config)
    _write(directory / "generation_config.json", {"eos_token_id": [EOS, 0]})
    (directory / "README.md").write_text("A model.\n", encoding="utf-8")
    return directory


def _write_tokenizer(model: TinyModel, directory: Path) -> None:
    gguf = parse_gguf(model.gguf)
    tokenizer, config = build_tokenizer_files(gguf, read_shape(gguf))
    _write(directory / "tokenizer.json", tokenizer)
    _write(directory / "tokenizer_config.json", config)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
