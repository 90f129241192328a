"""What the runtime must know of a model's graph, and the changes that it makes to it in memory.

Leaving the logits unbound does not skip the nodes that compute them, and in a small model they are
a fifth of prefill. So rows are cut away before the head's matrix product, from a position that an
added input gives.

On a GPU a token is drawn by the host, whose time for looking at every logit is several times the
device's for computing all of them. So the device looks first: it adds up what the probabilities are
to be divided by, and finds the largest logit of each block of the vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from miner.errors import UnsupportedModelError
from miner.rows import BLOCK
from miner.runtime.config import ModelConfig

FIRST_ROW: Final = "aitbc.first_row"
"""The added input: logits are computed from this position of the run on; shape (1,)."""
SHARPNESS: Final = "aitbc.sharpness"
"""Added with the peaks: one by the temperature, for each row; shape (rows, 1, 1), float32."""
PEAKS: Final = "aitbc.peaks"
"""Added output: the largest logit of each block; shape (rows, tokens, blocks), float32."""
TOTALS: Final = "aitbc.totals"
"""Added output: the sum of exp(sharpness * (logit - largest)); shape (rows, tokens), float32."""
SHARING: Final = "GroupQueryAttention"
"""The operator that writes new keys into the memory of the old ones."""
DOMAINS: Final = {"", "ai.onnx", "com.microsoft"}
MAX_HEAD_NODES: Final = 16
_PRODUCTS: Final = {"MatMul", "MatMulNBits", "MatMulBnb4", "MatMulInteger", "FusedMatMul"}
_ROW_BY_ROW: Final = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Tanh"}
_INTEGER: Final = {
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
}
_INTEGER_LEVEL: Final = 4
"""accuracy_level of MatMulNBits that rounds the input to 8 bits."""
_TO_THE_END: Final = 1 << 62
AXES_ARE_INPUTS: Final = 18
"""The opset since which ReduceMax gets its axes as an input; ReduceSum does since 13."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What decides how a graph is run."""

    shares_cache: bool
    """Past and present keys may be the same memory; else present is past and new in one piece."""
    rounds_inputs: bool
    """Some products round their inputs, so that logits depend on how a text is cut into runs."""
    cache_kind: int
    """Element type of keys and values, by onnx's number."""
    token_bytes: int
    """Of keys and values of one token, in all layers."""


def inspect_graph(model: ModelProto, config: ModelConfig) -> GraphFacts:
    """See what a graph does.

    Raises:
        UnsupportedModelError: operators that no released runtime has, or only part of the layers
            shares its cache.
    """
    own = {function.domain for function in model.functions}
    foreign = {node.domain for node in model.graph.node} - DOMAINS - own
    if foreign:
        raise UnsupportedModelError(f"{config.file}: custom operators of {sorted(foreign)[:3]}")
    sharing = sum(_shares(node, config) for node in model.graph.node)
    if sharing not in {0, config.layers}:
        raise UnsupportedModelError(
            f"{config.file}: {sharing} of {config.layers} layers share their cache"
        )
    kinds = {face.name: face.type.tensor_type.elem_type for face in model.graph.input}
    kind = kinds.get(config.past_names[0], TensorProto.UNDEFINED)
    token_values = config.kv_heads * config.head_size * len(config.past_names)
    return GraphFacts(
        shares_cache=sharing > 0,
        rounds_inputs=any(map(_rounds, model.graph.node)),
        cache_kind=kind,
        token_bytes=token_values * (2 if kind == TensorProto.FLOAT16 else 4),
    )


def cut_before_head(model: ModelProto, logits: str) -> bool:
    """Make a graph compute logits only from position FIRST_ROW of each run on.

    Returns:
        Whether the head was recognised; else the graph is as before.
    """
    head = _find_head(model, logits)
    if not head or any(face.name == FIRST_ROW for face in model.graph.input):
        return False
    product = model.graph.node[head[0]]
    hidden, rows = product.input[0], f"{FIRST_ROW}/rows"
    _forget_shapes(model, {name for at in head for name in model.graph.node[at].output})
    product.input[0] = rows
    end = numpy_helper.from_array(np.array([_TO_THE_END]), f"{FIRST_ROW}/end")
    axis = numpy_helper.from_array(np.array([1]), f"{FIRST_ROW}/axis")
    model.graph.initializer.extend([end, axis])
    cut = helper.make_node("Slice", [hidden, FIRST_ROW, end.name, axis.name], [rows])
    model.graph.node.insert(head[0], cut)
    model.graph.input.append(helper.make_tensor_value_info(FIRST_ROW, TensorProto.INT64, [1]))
    return True


def add_peaks(model: ModelProto, logits: str, vocabulary: int) -> None:
    """Make a graph tell PEAKS and TOTALS of its logits too, given SHARPNESS.

    Args:
        model: the graph.
        logits: the name of that output, of shape (rows, tokens, vocabulary).
        vocabulary: its last size, where the graph does not say.
    """
    outputs = {face.name: face.type.tensor_type.shape.dim for face in model.graph.output}
    vocabulary = outputs[logits][-1].dim_value or vocabulary
    add = functools.partial(_add_node, model)
    floats = add("Cast", [logits], f"{PEAKS}/floats", to=TensorProto.FLOAT)
    filled = floats
    if missing := -vocabulary % BLOCK:
        fill = _add_constant(model, "fill", np.array([0, 0, 0, 0, 0, missing]))
        lowest = _add_constant(model, "lowest", np.array(np.finfo(np.float32).min))
        filled = add("Pad", [floats, fill, lowest], f"{PEAKS}/filled")
    shape = _add_constant(model, "shape", np.array([0, 0, -1, BLOCK]))
    blocks = add("Reshape", [filled, shape], f"{PEAKS}/blocks")
    _add_largest(model, blocks, 3, PEAKS, keepdims=0)
    top = _add_largest(model, PEAKS, 2, f"{PEAKS}/top", keepdims=1)
    below = add("Sub", [floats, top], f"{PEAKS}/below")
    scaled = add("Mul", [below, SHARPNESS], f"{PEAKS}/scaled")
    weights = add("Exp", [scaled], f"{PEAKS}/weights")
    across = _add_constant(model, "across", np.array([2]))
    add("ReduceSum", [weights, across], TOTALS, keepdims=0)
    face = functools.partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    model.graph.input.append(face(SHARPNESS, shape=["rows", 1, 1]))
    model.graph.output.append(face(PEAKS, shape=["rows", "tokens", "blocks"]))
    model.graph.output.append(face(TOTALS, shape=["rows", "tokens"]))


def _add_node(
    model: ModelProto, kind: str, inputs: list[str], output: str, **attributes: Any
) -> str:
    model.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
    return output


def _add_constant(model: ModelProto, name: str, values: NDArray[Any]) -> str:
    tensor = numpy_helper.from_array(values, f"{PEAKS}/{name}")
    model.graph.initializer.append(tensor)
    return tensor.name


def _add_largest(model: ModelProto, value: str, axis: int, output: str, *, keepdims: int) -> str:
    if _opset(model) < AXES_ARE_INPUTS:
        return _add_node(model, "ReduceMax", [value], output, axes=[axis], keepdims=keepdims)
    axes = _add_constant(model, f"axis_{axis}", np.array([axis]))
    return _add_node(model, "ReduceMax", [value, axes], output, keepdims=keepdims)


def _opset(model: ModelProto) -> int:
    return next(int(used.version) for used in model.opset_import if used.domain in {"", "ai.onnx"})


def _shares(node: NodeProto, config: ModelConfig) -> bool:
    return (
        node.op_type == SHARING
        and not {*node.input[3:5]}.isdisjoint(config.past_names)
        and not {*node.output[1:3]}.isdisjoint(config.present_names)
    )


def _rounds(node: NodeProto) -> bool:
    return node.op_type in _INTEGER or _attribute(node, "accuracy_level") == _INTEGER_LEVEL


def _attribute(node: NodeProto, name: str) -> int:
    """An integer attribute; 0, the default of those asked for here, if it is not set."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _find_head(model: ModelProto, logits: str) -> list[int]:
    """Indices of the nodes from the head's matrix product, which is first, to the logits.

    Empty unless everything on the way treats positions alike.
    """
    places = {name: at for at, node in enumerate(model.graph.node) for name in node.output}
    wanted, seen, products = [logits], set[int](), set[int]()
    while wanted:
        name = wanted.pop()
        at = places.get(name)
        if at is None or at in seen:
            continue
        node = model.graph.node[at]
        if node.op_type == "DynamicQuantizeLinear" and name != node.output[0]:
            continue  # the scale of all rows together, one number
        seen.add(at)
        if node.op_type in _PRODUCTS and node.input[0] in places:
            products.add(at)
        elif _is_row_by_row(node) and len(seen) <= MAX_HEAD_NODES:
            wanted += node.input
        else:
            return []
    return [*products, *(seen - products)] if len(products) == 1 else []


def _is_row_by_row(node: NodeProto) -> bool:
    return node.op_type in _ROW_BY_ROW or (
        node.op_type == "Split" and _attribute(node, "axis") == 0
    )


def _forget_shapes(model: ModelProto, names: set[str]) -> None:
    """Shapes written down for the head say that it has as many rows as the run has tokens."""
    kept = [value for value in model.graph.value_info if value.name not in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    for output in model.graph.output:
        shape = output.type.tensor_type.shape
        if output.name in names and len(shape.dim) > 1:
            shape.dim[1].dim_param = f"{FIRST_ROW}/count"
