"""Dynamic int8 on linear layers: activations find their grid at every call, nothing to calibrate.

``DynamicQuantizeLinear`` puts an activation on the uint8 grid that spans it, ``MatMulInteger``
multiplies integers, and the scales make floats of the sums: standard operators, which ONNX Runtime
fuses. Convolutions stay float: no CPU provider has the integer form of them with dynamic scales.
"""

from __future__ import annotations

import onnx_ir as ir

from edgediffusion_export.quantize.editing import Editor
from edgediffusion_export.quantize.layers import Layer, find_layers
from edgediffusion_export.weights import WeightStore


def quantize_dynamically(model: ir.Model, weights: WeightStore, levels: int) -> list[str]:
    """Let the linear layers of a graph compute in int8; returns the names of their weights."""
    layers = [layer for layer in find_layers(model, weights) if layer.kind == "MatMul"]
    editor = Editor(model, weights, levels)
    activations: dict[ir.Value, ir.Node] = {}
    for layer in layers:
        if layer.activation not in activations:
            activations[layer.activation] = editor.before(
                layer.node, "DynamicQuantizeLinear", [layer.activation], outputs=3
            )
        _replace(editor, layer, activations[layer.activation])
    editor.drop_unused()
    return [layer.names[0] for layer in layers]


def _replace(editor: Editor, layer: Layer, activation: ir.Node) -> None:
    """Put integers in the place of one layer: (integers * scale) @ (weight * scales)."""
    node, (weight, scales) = layer.node, editor.weight(layer)
    integers, scale, zero = activation.outputs
    (sums,) = editor.before(node, "MatMulInteger", [integers, weight, zero]).outputs
    as_float = {"to": ir.DataType.FLOAT}
    (floats,) = editor.before(node, "Cast", [sums], attributes=as_float).outputs
    (both,) = editor.before(node, "Mul", [scale, scales]).outputs
    product = editor.before(node, "Mul", [floats, both])
    (old,), (new,) = node.outputs, product.outputs
    new.shape, new.type = old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    editor.graph.remove(node, safe=True)
