"""Products by integer arithmetic without its error.

For 8-bit weights ONNX Runtime has only one product on the CPU that is fast: accuracy_level 4 of
MatMulNBits (level 0 unpacks the whole matrix for every token). It rounds the input to 8 bits per
group, which alone turns close calls of greedy decoding (relative error 5e-3). So the input is
split into its own 8-bit rounding, which the operator then represents exactly, and the remainder,
whose rounding error is 250 times smaller. Both go through as rows of one batch: the weights are
read once.

A third part would make it as exact as fp32, at three quarters of the speed (docs/adr/0024).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from miner.models.graph import GraphWriter
from miner.models.matrix import Matrix
from miner.models.packing import PACKINGS

INTEGER: Final = 4
"""The accuracy_level."""


class IntegerProducts:
    """Writes such products into one graph. Methods take and return names of values in it."""

    def __init__(self, graph: GraphWriter) -> None:
        self._graph = graph
        self._split: dict[tuple[str, int], str] = {}
        """Inputs that were split already, by value and group."""

    def multiply(self, name: str, matrix: Matrix, inputs: list[str], output: str) -> str:
        """Multiply the first of `inputs` by the packed matrix that the others are."""
        packing = PACKINGS[matrix.kind]
        both = self._split_input(name, matrix, inputs[0])
        products = self._graph.contrib(
            "MatMulNBits",
            [both, *inputs[1:]],
            [f"{name}/products"],
            K=matrix.columns,
            N=matrix.rows,
            bits=packing.bits,
            block_size=packing.group,
            accuracy_level=INTEGER,
        )
        halves = [f"{name}/of_coarse", f"{name}/of_fine"]
        self._graph.node("Split", [products], halves, axis=0, num_outputs=2)
        return self._graph.node("Add", halves, [output])

    def _split_input(self, name: str, matrix: Matrix, value: str) -> str:
        """The input's 8-bit rounding and the remainder, one after the other as one batch."""
        group = PACKINGS[matrix.kind].group
        if (value, group) in self._split:
            return self._split[value, group]
        graph = self._graph
        blocks = np.array([0, 0, matrix.columns // group, group], np.int64)
        by_group = graph.constant(f"{name}.blocks", blocks)
        flat = graph.constant(f"{name}.flat", np.array([0, 0, matrix.columns], np.int64))
        levels = graph.constant(f"{name}.levels", np.array(127, np.float32))
        tiny = graph.constant(f"{name}.tiny", np.array(1e-30, np.float32))
        parts = graph.node("Reshape", [value, by_group], [f"{name}/parts"])
        sizes = graph.node("Abs", [parts], [f"{name}/sizes"])
        largest = graph.node("ReduceMax", [sizes, "axis.last"], [f"{name}/largest"], keepdims=1)
        nonzero = graph.node("Max", [largest, tiny], [f"{name}/nonzero"])
        step = graph.node("Div", [nonzero, levels], [f"{name}/step"])
        scaled = graph.node("Div", [parts, step], [f"{name}/scaled"])
        rounded = graph.node("Round", [scaled], [f"{name}/rounded"])
        coarse = graph.node("Mul", [rounded, step], [f"{name}/coarse"])
        fine = graph.node("Sub", [parts, coarse], [f"{name}/fine"])
        rows = [graph.node("Reshape", [part, flat], [f"{part}_row"]) for part in (coarse, fine)]
        self._split[value, group] = graph.node("Concat", rows, [f"{name}/both"], axis=0)
        return self._split[value, group]
