"""Products by integer arithmetic without its error.

For 8-bit weights ONNX Runtime has only one product on the CPU that is fast: accuracy_level 4 of
MatMulNBits (level 0 unpacks the whole matrix for every token). It rounds the input to 8 bits per
group, which alone turns close calls of greedy decoding (relative error 5e-3). So the input is
split into its own 8-bit rounding, which the operator then represents exactly, and the remainder,
whose rounding error is 250 times smaller. All parts go through as rows of one batch: the weights
are read once.

Two parts are enough for the head (errors of 1e-3 in a logit). Errors of layers add up: with two
parts everywhere, logits of a whole model in Q8_0 were off by 9e-3, with three by 2e-4, as with
fp32 itself.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from miner.models.graph import GraphWriter
from miner.models.matrix import Matrix
from miner.models.packing import PACKINGS

INTEGER: Final = 4
"""The accuracy_level."""
HEAD_PARTS: Final = 2
LAYER_PARTS: Final = 3


class IntegerProducts:
    """Writes such products into one graph. Methods take and return names of values in it."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self._split: dict[tuple[str, int, int], str] = {}
        """Inputs that were split already, by value, group and number of parts."""

    def multiply(
        self, name: str, matrix: Matrix, inputs: list[str], output: str, *, parts: int
    ) -> str:
        """Multiply the first of `inputs` by the packed matrix that the others are."""
        packing = PACKINGS[matrix.kind]
        rows = self._split_input(name, matrix, inputs[0], parts)
        products = self._graph.contrib(
            "MatMulNBits",
            [rows, *inputs[1:]],
            [f"{name}/products"],
            K=matrix.columns,
            N=matrix.rows,
            bits=packing.bits,
            block_size=packing.group,
            accuracy_level=INTEGER,
        )
        shares = [f"{name}/of_{part}" for part in _part_names(parts)]
        self._graph.node("Split", [products], shares, axis=0, num_outputs=parts)
        return self._graph.node("Add" if parts == 2 else "Sum", shares, [output])

    def _split_input(self, name: str, matrix: Matrix, value: str, count: int) -> str:
        """The parts of an input, one after the other as one batch."""
        group = PACKINGS[matrix.kind].group
        key = (value, group, count)
        if key in self._split:
            return self._split[key]
        graph = self._graph
        blocks = np.array([0, 0, matrix.columns // group, group], np.int64)
        by_group = graph.constant(f"{name}.blocks", blocks)
        flat = graph.constant(f"{name}.flat", np.array([0, 0, matrix.columns], np.int64))
        graph.constant(f"{name}.levels", np.array(127, np.float32))
        graph.constant(f"{name}.tiny", np.array(1e-30, np.float32))
        rest = graph.node("Reshape", [value, by_group], [f"{name}/parts"])
        for turn in range(count - 1):
            rest = self._round_off(name, rest, _suffix(turn))
        named = [f"{name}/{part}" for part in _part_names(count)]
        rows = [graph.node("Reshape", [part, flat], [f"{part}_row"]) for part in named]
        self._split[key] = graph.node("Concat", rows, [f"{name}/both"], axis=0)
        return self._split[key]

    def _round_off(self, name: str, value: str, suffix: str) -> str:
        """Write a value's 8-bit rounding, `coarse`, and return what it leaves, `fine`."""
        graph = self._graph

        def node(operator: str, inputs: list[str], output: str, **attributes: int) -> str:
            return graph.node(operator, inputs, [f"{name}/{output}{suffix}"], **attributes)

        sizes = node("Abs", [value], "sizes")
        largest = node("ReduceMax", [sizes, "axis.last"], "largest", keepdims=1)
        nonzero = node("Max", [largest, f"{name}.tiny"], "nonzero")
        step = node("Div", [nonzero, f"{name}.levels"], "step")
        scaled = node("Div", [value, step], "scaled")
        rounded = node("Round", [scaled], "rounded")
        coarse = node("Mul", [rounded, step], "coarse")
        return node("Sub", [value, coarse], "fine")


def _suffix(turn: int) -> str:
    return str(turn + 1) if turn else ""


def _part_names(count: int) -> list[str]:
    coarse = [f"coarse{_suffix(turn)}" for turn in range(count - 1)]
    return [*coarse, f"fine{_suffix(count - 2)}"]
