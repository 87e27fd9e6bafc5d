"""What all rows of a batch have in common is computed once.

The rows of a UNet's batch are one picture at one moment beside several texts: guidance asks for
the same picture with the prompt and with the negative prompt. Up to the first layer that reads the
text all rows are equal: in Stable Diffusion 1 the first convolutions, one of the five attentions
over all places, and all that is made of the timestep; more where the first blocks read no text.
Traced, the picture is repeated for all rows before anything else is done. Here the repetition moves
down to where the text comes in.

Which nodes are before that follows from what depends on inputs with rows of their own. How they
look for a single row is not guessed but traced: at batch 1 the same network has the same nodes,
with other constants. Exact: each row gets the numbers that it would have computed itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgediffusion_export.rewrites.patch import Patch, static_shape

_CHEAP: Final = ("Reshape", "Transpose", "Unsqueeze", "Mul")
"""Operators that all rows may as well have: providers know attention and biases by them."""


def share_rows(many: ir.Model, one: ir.Model) -> int:
    """Let ``many`` compute what its rows share as ``one`` does, its twin of a single row.

    Changes ``many`` in place, and returns how many nodes work for all rows now. It stays as it is
    where the graphs differ in more than shapes, or a value has its rows elsewhere than in front.
    """
    twins = _twins(many.graph, one.graph)
    own = _with_own_rows(many.graph, one.graph)
    _leave_cheap(many.graph, own)
    shared = [node for node in twins if not own.intersection(node.outputs)]
    shrunk = {
        value: twin
        for node in shared
        for value, twin in zip(node.outputs, twins[node].outputs, strict=True)
        if static_shape(value) != static_shape(twin)
    }
    if not all(_leads(value, twin) for value, twin in _handed_on(shrunk, own).items()):
        return 0
    shapes = {value: static_shape(value) for value in shrunk}
    for node in shared:
        _become(many.graph, node, twins[node])
    _repeat_for_others(many.graph, shapes, own)
    RemoveUnusedNodesPass()(many)
    return len(shared)


def remove_idle(graph: ir.Graph) -> None:
    """Take out the repetitions to the shape that a value has already."""
    for node in list(graph):
        if _repeats_rows(node) and static_shape(node.outputs[0]) == static_shape(node.inputs[0]):
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def _twins(many: ir.Graph, one: ir.Graph) -> dict[ir.Node, ir.Node]:
    """The nodes of one graph by those of the other; none where the two are not alike.

    Repeating a row is a node in one of them only.
    """
    pairs = [[node for node in graph if not _repeats_rows(node)] for graph in (many, one)]
    kinds = [[(node.domain, node.op_type, len(node.inputs)) for node in nodes] for nodes in pairs]
    return dict(zip(*pairs, strict=True)) if kinds[0] == kinds[1] else {}


def _repeats_rows(node: ir.Node) -> bool:
    """Whether a node gives the only row of its input, once or several times."""
    if node.op_type != "Expand":
        return False
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return before is not None and after is not None and before[1:] == after[1:] and before[0] == 1


def _with_own_rows(many: ir.Graph, one: ir.Graph) -> set[Any]:
    """All values that depend on an input which has rows of its own in the larger graph."""
    own: set[Any] = {
        value
        for value, twin in zip(many.inputs, one.inputs, strict=True)
        if static_shape(value) != static_shape(twin)
    }
    for node in many:
        if own.intersection(node.inputs):
            own.update(node.outputs)
    return own


def _leave_cheap(graph: ir.Graph, own: set[Any]) -> None:
    """Count cheap operators in front of those with rows of their own among them."""
    for node in reversed(graph):
        users = [user for output in node.outputs for user in output.consumers()]
        if node.op_type in _CHEAP and users and all(_is_own(user, own) for user in users):
            own.update(node.outputs)


def _handed_on(shrunk: dict[Any, Any], own: set[Any]) -> dict[Any, Any]:
    """Those values that a node with rows of its own takes, or that leave the graph."""
    return {
        value: twin
        for value, twin in shrunk.items()
        if value.is_graph_output() or any(_is_own(user, own) for user in value.consumers())
    }


def _is_own(node: ir.Node, own: set[Any]) -> bool:
    return bool(own.intersection(node.outputs))


def _leads(value: ir.Value, twin: ir.Value) -> bool:
    """Whether the rows are the first side of a value, so that repeating them gives it back."""
    many, one = static_shape(value), static_shape(twin)
    return many is not None and one is not None and one == (1, *many[1:])


def _become(graph: ir.Graph, node: ir.Node, twin: ir.Node) -> None:
    """Give a node the attributes, constants and shapes of its twin."""
    node.attributes.clear()
    node.attributes.update(twin.attributes)
    for index, (value, other) in enumerate(zip(node.inputs, twin.inputs, strict=True)):
        if value is not None and value.is_initializer():
            node.replace_input_with(index, _constant(graph, value, other))
        elif (maker := value and value.producer()) and _repeats_rows(maker):
            node.replace_input_with(index, maker.inputs[0])
    for value, other in zip(node.outputs, twin.outputs, strict=True):
        value.shape = other.shape


def _constant(graph: ir.Graph, value: ir.Value, twin: Any) -> ir.Value:
    """A constant of the twin's, under a name of its own where it is another."""
    mine, other = value.const_value.numpy(), twin.const_value.numpy()
    if np.array_equal(mine, other):
        return value
    name = f"{value.name}.once"
    if name not in graph.initializers:
        tensor = ir.tensor(other, name=name)
        made = ir.Value(name=name, shape=tensor.shape, type=value.type, const_value=tensor)
        graph.initializers[name] = made
    return graph.initializers[name]


def _repeat_for_others(graph: ir.Graph, shapes: dict[Any, Any], own: set[Any]) -> None:
    """Repeat the values of single rows where the first node with rows of its own takes them."""
    repeated: dict[Any, ir.Value] = {}
    for node in list(graph):
        if not _is_own(node, own):
            continue
        for index, value in enumerate(node.inputs):
            if value in shapes:
                if value not in repeated:
                    repeated[value] = _repeat(graph, node, value, shapes[value])
                node.replace_input_with(index, repeated[value])


def _repeat(graph: ir.Graph, before: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    rows = Patch(graph, before).expand(value, *shape)
    rows.shape, rows.type, rows.name = ir.Shape(shape), value.type, f"{value.name}.rows"
    return rows
