"""How many bytes a graph's weights and its working memory take, read from its ONNX file.

Without the onnx package: this walks the few protobuf fields that matter (onnx.proto: GraphProto,
NodeProto, TensorProto, ValueInfoProto). The exporter writes the static shape of every value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgediffusion.errors import EngineError
from edgediffusion.external_data import fields

_GRAPH: Final = 7
_NODE, _INITIALIZER, _VALUES = 1, 5, (11, 12, 13)
_HALF: Final = 10
_ITEM_BYTES: Final = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
"""Bytes of one element by TensorProto.DataType."""


@dataclass(frozen=True)
class GraphBytes:
    """What one graph takes when it runs.

    weights : bytes of its parameters in the dtype that it computes with.
    working : the most bytes of inputs, outputs and values between nodes that live at one time.
    """

    weights: int
    working: int


@dataclass(frozen=True)
class _Node:
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_graph_bytes(path: Path) -> GraphBytes:
    """Read the graph at ``path``; raises EngineError where it is damaged or has no shapes."""
    try:
        return _measure(memoryview(path.read_bytes()))
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from error
    except (IndexError, KeyError, ValueError) as error:
        raise EngineError(
            f"{path} does not say how much memory it takes ({error}): export the bundle again"
        ) from None


def half_weights(path: Path) -> int:
    """Return the bytes of the float16 weights of the graph at ``path``.

    They are 0 for a file that cannot be read: what opens it next says why.
    """
    try:
        graph = dict(_messages(memoryview(path.read_bytes())))[_GRAPH]
        tensors = [_tensor(value) for number, value in _messages(graph) if number == _INITIALIZER]
    except (OSError, IndexError, KeyError, ValueError):
        return 0
    return sum(size for _, size, kind in tensors if kind == _HALF)


def _measure(model: memoryview) -> GraphBytes:
    graph = dict(_messages(model))[_GRAPH]
    nodes: list[_Node] = []
    sizes: dict[str, int] = {}
    weights: dict[str, int] = {}
    for number, value in _messages(graph):
        if number == _NODE:
            nodes.append(_node(value))
        elif number == _INITIALIZER:
            name, size, _ = _tensor(value)
            weights[name] = size
        elif number in _VALUES:
            name, size = _value(value)
            sizes[name] = size
    computing = [node for node in nodes if not _is_constant(node, weights)]
    for node in nodes:  # weights that are cast from what is stored
        if _is_constant(node, weights):
            weights |= {name: sizes[name] for name in node.outputs}
    used = {name for node in computing for name in node.inputs if name in weights}
    return GraphBytes(sum(weights[name] for name in used), _peak(computing, sizes, weights))


def _peak(nodes: Iterable[_Node], sizes: dict[str, int], weights: dict[str, int]) -> int:
    """The most bytes that live at one time, each value from its node to the last that reads it."""
    nodes = list(nodes)
    last = {name: at for at, node in enumerate(nodes) for name in node.inputs}
    known = last.keys() - weights.keys()
    made = {name for node in nodes for name in node.outputs}
    live = peak = sum(sizes[name] for name in known - made if name)
    for at, node in enumerate(nodes):
        live += sum(sizes[name] for name in node.outputs if name)
        peak = max(peak, live)
        ended = {name for name in node.inputs if name in known and last[name] == at}
        live -= sum(sizes[name] for name in ended if name)
    return peak


def _is_constant(node: _Node, weights: dict[str, int]) -> bool:
    return all(not name or name in weights for name in node.inputs)


def _node(message: memoryview) -> _Node:
    found = list(_messages(message))
    inputs, outputs = ([_text(v) for number, v in found if number == want] for want in (1, 2))
    return _Node(tuple(inputs), tuple(outputs))


def _tensor(message: memoryview) -> tuple[str, int, int]:
    """Name, bytes and data type of an initializer (TensorProto: dims 1, data_type 2, name 8)."""
    dims, kind, name = [], 0, ""
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and isinstance(value, memoryview):
            name = _text(value)
    return name, math.prod(dims) * _ITEM_BYTES[kind], kind


def _value(message: memoryview) -> tuple[str, int]:
    """Name and bytes of a value (ValueInfoProto: name 1, type 2)."""
    found = dict(_messages(message))
    tensor = next(value for number, value in _messages(found[2]) if number == 1)
    kinds = [value for number, value in fields(tensor) if number == 1]
    shapes = [value for number, value in _messages(tensor) if number == 2]
    dims = [side for shape in shapes for _, dim in _messages(shape) for _, side in fields(dim)]
    if not all(isinstance(side, int) for side in dims):
        raise ValueError(f"{_text(found[1])} has no static shape")
    return _text(found[1]), math.prod(dims) * _ITEM_BYTES[kinds[0]]  # type: ignore[arg-type,index]


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    for number, value in fields(data):
        if isinstance(value, memoryview):
            yield number, value


def _text(data: memoryview) -> str:
    return bytes(data).decode()
