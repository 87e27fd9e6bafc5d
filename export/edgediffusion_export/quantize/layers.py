"""The linear layers and convolutions of a traced graph, found by the parameters that they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgediffusion_export.quantize.integers import QuantizedWeight, quantize_weight
from edgediffusion_export.weights import WeightStore

_OUTPUT_AXIS: Final = {"Conv": 0, "MatMul": 1}
"""The axis of output channels. Gemm is left out: its one row of time embeddings costs nothing."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies activations by a parameter.

    names : the checkpoint's parameters that the weight is; transforms : what was done to it.
    """

    node: ir.Node
    names: tuple[str, ...]
    transforms: tuple[str, ...]

    @property
    def kind(self) -> str:
        """``Conv`` or ``MatMul``."""
        return str(self.node.op_type)

    @property
    def activation(self) -> ir.Value:
        """What the weight is multiplied with."""
        return _known(self.node.inputs[0])

    @property
    def weight(self) -> ir.Value:
        """The weight's initializer."""
        return _known(self.node.inputs[1])

    def quantized(self, levels: int) -> QuantizedWeight:
        """The weight in int8."""
        assert self.weight.const_value is not None
        array: NDArray[np.float32] = self.weight.const_value.numpy()
        return quantize_weight(array, _OUTPUT_AXIS[self.kind], levels)


def find_layers(model: ir.Model, weights: WeightStore) -> Iterator[Layer]:
    """Yield the layers of a graph whose weights are the checkpoint's, in the graph's order."""
    for node in model.graph:
        if node.op_type not in _OUTPUT_AXIS or node.domain not in ("", "ai.onnx"):
            continue
        weight = node.inputs[1]
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        if found := weights.trace(weight.const_value.numpy()):
            names, transforms = found
            yield Layer(node, tuple(names), transforms)


def _known(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
