"""Mixed precision: layers of a half graph that compute in float32, with Casts at their borders.

The graph is the half module's, so it has that one's own casts and its weights: a layer in float32
computes with the weights that float16 rounded. Which layer a node belongs to is what the tracer
wrote down; a node that its optimizer put in goes with the one that it takes its input from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Final

import numpy as np
import onnx_ir as ir

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
"""The names of the modules around a node, the innermost last, and then the node's own."""

_CALL: Final = re.compile(r"@\d+")
"""What the tracer adds to the name of a module from its second call on."""

_TYPED_BY_ATTRIBUTE: Final = ("Constant", "ConstantOfShape")
"""Operators whose results do not take the type of their inputs."""

_HALF: Final = ir.DataType.FLOAT16
_FLOAT: Final = ir.DataType.FLOAT


def compute_in_float32(model: ir.Model, layers: Collection[str], prefix: str) -> None:
    """Let the nodes of some layers take and give float32; the graph's own inputs and outputs stay.

    layers : modules by name, without the ``prefix`` that the tracer's module has for them; each
    stands for its own operators, not for the modules inside it.
    """
    graph = model.graph
    of_layer = _layers(graph, prefix)
    wide = {
        node: None
        for node in graph
        if of_layer[node] in layers and node.op_type not in _TYPED_BY_ATTRIBUTE
    }
    widened = [value for node in wide for value in node.outputs if value.dtype == _HALF]
    for value in widened:
        value.type = ir.TensorType(_FLOAT)
    for node in wide:
        if node.op_type == "Cast" and node.attributes["to"].value == _HALF:
            node.attributes["to"] = ir.AttrInt64("to", _FLOAT)
    for value in _halves(wide):
        _give_float32(graph, value, wide)
    for value in widened:
        _give_float16(graph, value, wide)


def _layers(graph: ir.Graph, prefix: str) -> dict[ir.Node, str]:
    """The layer of each node."""
    found: dict[ir.Node, str] = {}
    for node in graph:
        if scopes := node.metadata_props.get(_SCOPES):
            *modules, _ = ast.literal_eval(scopes)
            name = _CALL.sub("", modules[-1]) if modules else ""
            found[node] = f"{name}.".removeprefix(prefix).removesuffix(".")
        else:
            makers = [value.producer() for value in node.inputs if value is not None]
            found[node] = next((found[maker] for maker in makers if maker is not None), "")
    return found


def _halves(wide: Collection[ir.Node]) -> dict[ir.Value, None]:
    """The float16 values that float32 nodes take, in order."""
    inputs = (value for node in wide for value in node.inputs)
    return dict.fromkeys(value for value in inputs if value is not None and value.dtype == _HALF)


def _give_float32(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> None:
    """Give the float32 nodes among a value's users its float32 twin."""
    users = [(node, index) for node, index in value.uses() if node in wide]
    if value.is_initializer():
        if len(users) == len(value.uses()):
            value.type, value.const_value = ir.TensorType(_FLOAT), _float32(value)
            return
        twin = ir.Value(name=f"{value.name}.float32", shape=value.shape, type=ir.TensorType(_FLOAT))
        twin.const_value = _float32(value)
        graph.register_initializer(twin)
    else:
        twin = _cast(graph, value, _FLOAT)
    for node, index in users:
        node.replace_input_with(index, twin)


def _give_float16(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> None:
    """Give everyone else a float32 node's result in float16; a Cast takes it as it is."""
    users = [
        (node, index) for node, index in value.uses() if node not in wide and node.op_type != "Cast"
    ]
    is_output = value.is_graph_output()
    if not users and not is_output:
        return
    narrow = _cast(graph, value, _HALF)
    for node, index in users:
        node.replace_input_with(index, narrow)
    if is_output:
        value.name, narrow.name = narrow.name, value.name
        graph.outputs[:] = [narrow if output is value else output for output in graph.outputs]


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    """Cast a value as soon as it is there."""
    node = ir.node("Cast", [value], attributes={"to": to})
    (result,) = node.outputs
    result.name = f"{value.name}.{to.numpy().name}"
    result.type, result.shape = ir.TensorType(to), value.shape
    node.name = f"{result.name}.cast"
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return result


def _float32(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
