"""Putting operators in the place of others, in front of a node of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_SHARED: Final = "rewrites"
"""Constants that all places of a graph share have names that begin with this."""


class Patch:
    """Operators that take the place of ``node``; they are named after its output."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node
        self._count = 0

    def add(self, kind: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """Insert an operator with one output, which is returned."""
        name = f"{self._node.outputs[0].name}.{self._count}"
        self._count += 1
        made = ir.node(kind, inputs, attributes, domain=domain, name=f"{name}.{kind}")
        made.outputs[0].name = name
        made.outputs[0].type = self._node.outputs[0].type
        self._graph.insert_before(self._node, made)
        return made.outputs[0]

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """Lay the numbers of ``value`` out in another shape."""
        return self.add("Reshape", value, self._sides(shape))

    def expand(self, value: ir.Value, *shape: int) -> ir.Value:
        """Repeat ``value`` to a larger shape."""
        return self.add("Expand", value, self._sides(shape))

    def _sides(self, shape: Sequence[int]) -> ir.Value:
        return self.constant(f"shape.{'x'.join(map(str, shape))}", np.array(shape, np.int64))

    def transpose(self, value: ir.Value, *sides: int) -> ir.Value:
        """Put the sides of ``value`` into another order."""
        return self.add("Transpose", value, perm=list(sides))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The numbers of ``value`` in another type."""
        made = self.add("Cast", value, to=dtype)
        made.type = ir.TensorType(dtype)
        return made

    def rows(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Some rows of maps of shape (batch, channels, height, width)."""
        bounds = [self.constant(f"at.{at}", np.array([at], np.int64)) for at in (start, stop, 2)]
        return self.add("Slice", value, *bounds)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """A constant by its name, which says what it holds: the graph keeps it once."""
        name = f"{_SHARED}.{name}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
            value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
            self._graph.initializers[name] = value
        return self._graph.initializers[name]

    def finish(self, value: ir.Value) -> None:
        """Let ``value`` be what the node gave, and remove the node."""
        (old,) = self._node.outputs
        value.shape, value.type = old.shape, old.type
        if old.is_graph_output():
            value.name, old.name = old.name, value.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The sizes of a value's sides; None where one is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(map(int, value.shape)) if value.shape.is_static() else None


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant holds; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is a stored tensor, as it is or cast from its storage."""
    if value is None:
        return False
    maker = value.producer()
    if maker is not None and maker.op_type == "Cast":
        return is_weight(maker.inputs[0])
    return bool(value.is_initializer())


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that takes a value, if no other one does and it does not leave the graph."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def attribute(node: ir.Node, name: str, default: Sequence[int] | int | str) -> Any:
    """The value of an attribute, integers in a tuple."""
    found = node.attributes.get(name)
    value = default if found is None else found.value
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
