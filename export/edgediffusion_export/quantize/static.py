"""Static int8 for CPUs: QuantizeLinear and DequantizeLinear round the layers, on fixed grids.

Runtimes fuse what stands between the two into integer kernels: uint8 activations, int8 weights with
a scale per output channel, int32 sums. ONNX Runtime wants a convolution's output on a grid as well,
and its bias as int32 on the grid of the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from edgediffusion_export.quantize.editing import Editor
from edgediffusion_export.quantize.integers import Grid
from edgediffusion_export.quantize.layers import Layer, find_layers
from edgediffusion_export.quantize.sensitivity import LayerGrids
from edgediffusion_export.weights import WeightStore

_INT32_TOP: Final = 2**31 - 1


def quantize_statically(
    model: ir.Model, weights: WeightStore, grids: Mapping[str, LayerGrids], levels: int
) -> list[str]:
    """Let the layers that ``grids`` has, by their weights' names, compute in int8.

    Returns the names of the weights, one for each node.
    """
    layers = [layer for layer in find_layers(model, weights) if layer.names[0] in grids]
    writer = _Writer(Editor(model, weights, levels), weights)
    for layer in layers:
        writer.replace(layer, grids[layer.names[0]])
    writer.editor.drop_unused()
    return [layer.names[0] for layer in layers]


class _Writer:
    """Puts the nodes of one graph in place; rounded activations are shared."""

    def __init__(self, editor: Editor, weights: WeightStore) -> None:
        self.editor = editor
        self._weights = weights
        self._rounded: dict[tuple[ir.Value, Grid], ir.Value] = {}

    def replace(self, layer: Layer, grids: LayerGrids) -> None:
        """Round what a layer takes and gives."""
        node = layer.node
        node.replace_input_with(0, self._activation(node, layer.activation, grids.input))
        integers, scales = self.editor.weight(layer)
        if layer.kind == "MatMul":
            self._part_from_bias(node)
        elif len(node.inputs) > 2:
            self._replace_bias(layer, grids.input, scales)
        axis = {"axis": 0 if layer.kind == "Conv" else 1}
        stored = [integers, scales, self._zeros(scales, np.int8)]
        read = self.editor.before(node, "DequantizeLinear", stored, attributes=axis)
        node.replace_input_with(1, read.outputs[0])
        if grids.output is not None and not node.outputs[0].is_graph_output():
            self._round_output(node, grids.output)

    def _activation(self, node: ir.Node, value: ir.Value, grid: Grid) -> ir.Value:
        if (value, grid) not in self._rounded:
            self._rounded[value, grid] = self._round(node, value, grid)
        return self._rounded[value, grid]

    def _round(self, node: ir.Node, value: ir.Value, grid: Grid) -> ir.Value:
        """The value as its integers on a grid tell it, made in front of ``node``."""
        pair = [*self._grid(grid)]
        (integers,) = self.editor.before(node, "QuantizeLinear", [value, *pair]).outputs
        return self.editor.before(node, "DequantizeLinear", [integers, *pair]).outputs[0]

    def _grid(self, grid: Grid) -> tuple[ir.Value, ir.Value]:
        scale = np.array(grid.scale, np.float32)
        zero = np.array(grid.zero, np.uint8)
        name = f"grid.{float(scale).hex()}"
        return self.editor.constant(name, scale), self.editor.constant(f"zero.{zero}", zero)

    def _zeros(self, scales: ir.Value, dtype: type[np.generic]) -> ir.Value:
        """Zero points of a tensor's channels, which ONNX Runtime's fusions want spelled out.

        Each tensor has its own: ONNX Runtime fails where it makes unsigned weights of signed ones
        that share theirs.
        """
        assert scales.const_value is not None
        zeros = np.zeros(scales.const_value.numpy().shape, dtype)
        return self.editor.constant(f"{scales.name}.zeros.{zeros.dtype}", zeros)

    def _replace_bias(self, layer: Layer, grid: Grid, scales: ir.Value) -> None:
        node, bias = layer.node, layer.node.inputs[2]
        assert bias is not None
        assert bias.const_value is not None
        assert scales.const_value is not None
        steps = (scales.const_value.numpy() * np.float32(grid.scale)).astype(np.float32)
        floats = bias.const_value.numpy().astype(np.float64)
        integers = np.rint(floats / steps).clip(-_INT32_TOP, _INT32_TOP).astype(np.int32)
        if found := self._weights.trace(bias.const_value.numpy()):
            self._weights.derive(integers, found[0], (*found[1], "quantize:int32"))
        name = f"{bias.name}.{node.name}"
        stored = [
            self.editor.constant(f"{name}.int32", integers),
            self.editor.constant(f"{name}.scales", steps),
            self._zeros(scales, np.int32),
        ]
        read = self.editor.before(node, "DequantizeLinear", stored, attributes={"axis": 0})
        node.replace_input_with(2, read.outputs[0])

    def _part_from_bias(self, node: ir.Node) -> None:
        """Give the bias behind a product three sides.

        With one side, ONNX Runtime makes a float Gemm of the two before it looks for integers.
        """
        for reader, index in node.outputs[0].uses():
            bias = reader.inputs[1 - index] if reader.op_type == "Add" else None
            if bias is not None and bias.const_value is not None and len(bias.shape or ()) == 1:
                wide = bias.const_value.numpy().reshape(1, 1, -1)
                reader.replace_input_with(
                    1 - index, self.editor.constant(f"{bias.name}.wide", wide)
                )

    def _round_output(self, node: ir.Node, grid: Grid) -> None:
        """Let all who read a convolution's output read it from a grid."""
        (output,) = node.outputs
        readers = tuple(output.uses())
        pair = [*self._grid(grid)]
        quantize = ir.node("QuantizeLinear", [output, *pair], name=f"{node.name}.integers")
        read = ir.node("DequantizeLinear", [quantize.outputs[0], *pair], name=f"{node.name}.floats")
        for made in (quantize, read):
            made.outputs[0].name = f"{made.name}.0"
        self.editor.graph.insert_after(node, [quantize, read])
        for reader, index in readers:
            reader.replace_input_with(index, read.outputs[0])
