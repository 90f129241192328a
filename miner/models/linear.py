"""Graph parts that hold weights: multiply by a matrix, look up an embedding, compute the head.

4-bit kinds go into MatMulNBits as they are, at accuracy_level 0: the operator unpacks weights and
multiplies in fp32. Kinds of 8 bits go through `miner.models.integer`. Float kinds are multiplied
plainly.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from miner.models.graph import GraphWriter
from miner.models.integer import IntegerProducts
from miner.models.kinds import TensorKind
from miner.models.matrix import Matrix, refuse_infinite
from miner.models.packing import PACKINGS, Blocks, Floats, Packing, dequantise, pack_codes

F32: Final = TensorProto.FLOAT
_FLOATS: Final = {
    TensorKind.F32: F32,
    TensorKind.F16: TensorProto.FLOAT16,
    TensorKind.BF16: TensorProto.BFLOAT16,
}
EXACT: Final = 0
"""The accuracy_level that multiplies in fp32."""


class WeightWriter:
    """Writes the parts of one graph. Methods take and return names of values in it."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self._integer = IntegerProducts(graph)
        self._sums: dict[tuple[str, int], str] = {}
        """Sums that several matrices need of one input, by value and group."""

    def multiply(self, name: str, matrix: Matrix, value: str) -> str:
        """Multiply by the transpose of a matrix of shape (outputs, inputs)."""
        if matrix.kind.is_float:
            return self._multiply_floats(name, matrix, value)
        packing = PACKINGS[matrix.kind]
        quants = self._store_codes(f"{name}.quants", matrix, packing)
        scales = self._store_scales(f"{name}.scale", matrix, packing)
        output = f"{name}/output" if packing.rests is None else f"{name}/main"
        inputs = [value, quants, scales]
        if packing.bits == 8:
            main = self._integer.multiply(name, matrix, inputs, output)
        else:
            main = self._graph.contrib(
                "MatMulNBits",
                inputs,
                [output],
                K=matrix.columns,
                N=matrix.rows,
                bits=packing.bits,
                block_size=packing.group,
                accuracy_level=EXACT,
            )
        if packing.rests is None:
            return main
        sums = self._group_sums(name, matrix, value)
        rest_name = self._graph.constant(f"{name}.rest", _rests(name, matrix, packing).T)
        return self._add_rest(name, main, sums, rest_name, f"{name}/output")

    def embed(self, matrix: Matrix) -> str:
        """Rows of the embedding for the graph's input_ids; its tensors are named `embedding.…`."""
        graph = self._graph
        if matrix.kind.is_float:
            stored = self._store_floats("embedding.weight", matrix)
            rows = graph.node("Gather", [stored, "input_ids"], ["embedding/rows"], axis=0)
            return graph.node("Cast", [rows], ["embedding/output"], to=F32)
        packing = PACKINGS[matrix.kind]
        self._store_codes("embedding.weight", matrix, packing)
        self._store_scales("embedding.scale", matrix, packing)
        half = 1 << (packing.bits - 1)
        zero = graph.constant("embedding.zero", np.array(half, np.float32))
        axis = graph.constant("embedding.axis", np.array([-1], np.int64))
        width = graph.constant("embedding.width", np.array([0, 0, matrix.columns], np.int64))
        rows = graph.node("Gather", ["embedding.weight", "input_ids"], ["embedding/rows"], axis=0)
        scales = graph.node(
            "Gather", ["embedding.scale", "input_ids"], ["embedding/scales"], axis=0
        )
        floats = graph.node("Cast", [rows], ["embedding/floats"], to=F32)
        if packing.bits == 4:
            floats = self._unpack_nibbles(floats, matrix, packing)
        centred = graph.node("Sub", [floats, zero], ["embedding/centred"])
        column = graph.node("Unsqueeze", [scales, axis], ["embedding/column"])
        scaled = graph.node("Mul", [centred, column], ["embedding/scaled"])
        if packing.rests is not None:
            scaled = self._add_embedding_rest(scaled, matrix, packing)
        return graph.node("Reshape", [scaled, width], ["embedding/output"])

    def head(self, matrix: Matrix, value: str, *, is_tied: bool, is_plain: bool) -> None:
        """Compute `logits`; plain: on weights unpacked to fp32, if they are not floats anyway."""
        graph = self._graph
        source = "embedding" if is_tied else "head"
        if matrix.kind.is_float:
            if not is_tied:
                self._store_floats("head.weight", matrix)
            floats = graph.node("Cast", [f"{source}.weight"], ["head/floats"], to=F32)
            turned = graph.node("Transpose", [floats], ["head/turned"], perm=[1, 0])
            graph.node("MatMul", [value, turned], ["logits"])
            return
        packing = PACKINGS[matrix.kind]
        if is_plain:
            flat = _transposed("head", matrix, np.dtype(np.float32), packing)
            graph.node("MatMul", [value, graph.constant("head.weight", flat)], ["logits"])
            return
        if not is_tied:
            self._store_codes("head.weight", matrix, packing)
            self._store_scales("head.scale", matrix, packing)
        output = "logits" if packing.rests is None else "head/main"
        names = [value, f"{source}.weight", f"{source}.scale"]
        main = self._integer.multiply("head", matrix, names, output)
        if packing.rests is not None:
            if not is_tied:
                self._store_rests("head.rest", matrix, packing)
            turned = graph.node("Transpose", [f"{source}.rest"], ["head/rest"], perm=[1, 0])
            self._add_rest("head", main, self._group_sums("head", matrix, value), turned, "logits")

    def _group_sums(self, name: str, matrix: Matrix, value: str) -> str:
        group = PACKINGS[matrix.kind].group
        key = (value, group)
        if key not in self._sums:
            shape = np.array([0, 0, matrix.columns // group, group], np.int64)
            split = self._graph.constant(f"{name}.split", shape)
            parts = self._graph.node("Reshape", [value, split], [f"{name}/blocks"])
            self._sums[key] = self._graph.node(
                "ReduceSum", [parts, "axis.last"], [f"{name}/sums"], keepdims=0
            )
        return self._sums[key]

    def _add_rest(self, name: str, main: str, sums: str, rests: str, output: str) -> str:
        correction = self._graph.node("MatMul", [sums, rests], [f"{name}/correction"])
        return self._graph.node("Add", [main, correction], [output])

    def _unpack_nibbles(self, floats: str, matrix: Matrix, packing: Packing) -> str:
        """Bytes of two codes, as floats, into codes: b = 16 high + low."""
        graph, groups = self._graph, matrix.columns // packing.group
        sixteen = graph.constant("embedding.sixteen", np.array(16, np.float32))
        shape = np.array([0, 0, groups, packing.group], np.int64)
        by_group = graph.constant("embedding.groups", shape)
        quotient = graph.node("Div", [floats, sixteen], ["embedding/quotient"])
        high = graph.node("Floor", [quotient], ["embedding/high"])
        above = graph.node("Mul", [high, sixteen], ["embedding/above"])
        low = graph.node("Sub", [floats, above], ["embedding/low"])
        columns = [
            graph.node("Unsqueeze", [part, "embedding.axis"], [f"{part}_column"])
            for part in (low, high)
        ]
        pairs = graph.node("Concat", columns, ["embedding/pairs"], axis=-1)
        return graph.node("Reshape", [pairs, by_group], ["embedding/codes"])

    def _add_embedding_rest(self, scaled: str, matrix: Matrix, packing: Packing) -> str:
        graph = self._graph
        self._store_rests("embedding.rest", matrix, packing)
        rests = graph.node("Gather", ["embedding.rest", "input_ids"], ["embedding/rests"], axis=0)
        column = graph.node("Unsqueeze", [rests, "embedding.axis"], ["embedding/rest_column"])
        return graph.node("Add", [scaled, column], ["embedding/whole"])

    def _multiply_floats(self, name: str, matrix: Matrix, value: str) -> str:
        turned = _transposed(name, matrix, matrix.kind.record)
        weights = self._graph.constant(f"{name}.weight", turned, _FLOATS[matrix.kind])
        if matrix.kind is not TensorKind.F32:  # the runtime converts constants once, at its start
            weights = self._graph.node("Cast", [weights], [f"{name}/weight"], to=F32)
        return self._graph.node("MatMul", [value, weights], [f"{name}/output"])

    def _store_floats(self, name: str, matrix: Matrix) -> str:
        shape = (matrix.rows, matrix.columns)
        size = matrix.rows * matrix.columns * matrix.kind.record.itemsize
        chunks = (refuse_infinite(name, blocks) for blocks in matrix.chunks())
        return self._graph.stream(name, shape, _FLOATS[matrix.kind], size, chunks)

    def _store_codes(self, name: str, matrix: Matrix, packing: Packing) -> str:
        width = packing.group * packing.bits // 8
        shape = (matrix.rows, matrix.columns // packing.group, width)
        chunks = (pack_codes(packing, blocks) for blocks in matrix.chunks())
        return self._graph.stream(name, shape, TensorProto.UINT8, int(np.prod(shape)), chunks)

    def _store_scales(self, name: str, matrix: Matrix, packing: Packing) -> str:
        shape = (matrix.rows, matrix.columns // packing.group)
        chunks = (_scales(name, packing, blocks) for blocks in matrix.chunks())
        return self._graph.stream(name, shape, F32, 4 * shape[0] * shape[1], chunks)

    def _store_rests(self, name: str, matrix: Matrix, packing: Packing) -> str:
        return self._graph.constant(name, _rests(name, matrix, packing))


def _scales(name: str, packing: Packing, blocks: Blocks) -> Floats:
    with np.errstate(invalid="ignore"):
        return refuse_infinite(name, packing.scales(blocks))


def _rests(name: str, matrix: Matrix, packing: Packing) -> Floats:
    assert packing.rests is not None
    with np.errstate(invalid="ignore"):
        rests = np.concatenate([packing.rests(blocks) for blocks in matrix.chunks()])
    return refuse_infinite(name, rests)


def _transposed(
    name: str, matrix: Matrix, dtype: np.dtype[Any], packing: Packing | None = None
) -> NDArray[Any]:
    """The matrix as MatMul takes it, shape (inputs, outputs)."""
    turned = np.empty((matrix.columns, matrix.rows), dtype)
    done = 0
    for blocks in matrix.chunks():
        with np.errstate(invalid="ignore"):
            rows = blocks if packing is None else dequantise(packing, blocks)
        turned[:, done : done + len(rows)] = refuse_infinite(name, rows).T
        done += len(rows)
    return turned
