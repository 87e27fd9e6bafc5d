"""Small edits of a graph: constants, stored weights, and nodes in front of another."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgediffusion_export.quantize.layers import Layer
from edgediffusion_export.weights import WeightStore


class Editor:
    """Adds nodes and initializers to a graph under names of their own.

    levels : how many integers a weight may use on either side of zero.
    """

    def __init__(self, model: ir.Model, weights: WeightStore, levels: int) -> None:
        self.graph = model.graph
        self._weights = weights
        self._levels = levels
        self._made: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._count = 0

    def before(self, node: ir.Node, op_type: str, inputs: list[ir.Value], **more: Any) -> ir.Node:
        """Insert a node in front of ``node``; ``outputs`` of them, and ``attributes``."""
        self._count += 1
        name = f"int8.{op_type}.{self._count}"
        outputs = more.pop("outputs", 1)
        made = ir.node(op_type, inputs, more.pop("attributes", {}), num_outputs=outputs, name=name)
        for index, value in enumerate(made.outputs):
            value.name = f"{name}.{index}"
        self.graph.insert_before(node, made)
        return made

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Add an initializer; a name that is taken means the same content."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape = ir.Shape(array.shape)
        value.dtype = ir.DataType.from_numpy(array.dtype)
        self.graph.register_initializer(value)
        return value

    def weight(self, layer: Layer) -> tuple[ir.Value, ir.Value]:
        """Put a layer's weight in as int8, and its scales as float32, stored once."""
        old = layer.weight
        assert old.name is not None
        if old.name not in self._made:
            quantized = layer.quantized(self._levels)
            name, names = f"{old.name}.int8", list(layer.names)
            done = (*layer.transforms, "quantize:int8")
            self._weights.derive(quantized.integers, names, done)
            scales = np.ascontiguousarray(quantized.scales)
            self._made[old.name] = (
                self.constant(name, quantized.integers),
                self.constant(f"{name}.scales", scales),
            )
        return self._made[old.name]

    def drop_unused(self) -> None:
        """Remove the float weights that nothing reads any more."""
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and value not in self.graph.inputs:
                del self.graph.initializers[name]
