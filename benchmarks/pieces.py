"""A graph as a chain of pieces, which can be loaded one at a time where memory is short.

A piece is what the tracer wrote down for one block of the network: nodes one after the other, up to
the first that uses a parameter of another block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import NodeProto, helper

from edgediffusion.manifest import DType, TensorSpec

_BLOCK: Final = re.compile(r".*?\.\d+(?=\.)|.*(?=\.)")
_DTYPES: Final[dict[int, DType]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
}


@dataclass(frozen=True)
class Piece:
    """A graph of its own, with what it takes from the pieces before and gives to those behind."""

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def cut(model: onnx.ModelProto) -> list[Piece]:
    """The pieces of a graph in their order. Each keeps the external tensors that it uses."""
    graph = model.graph
    values = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
    casts = _casts(graph)
    runs = list(_runs(graph, casts))
    wanted = {output.name for output in graph.output}
    found = []
    for run in reversed(runs):
        read = dict.fromkeys(name for node in run for name in node.input)
        nodes = [*(casts[name] for name in read if name in casts), *run]
        used = {name for node in nodes for name in node.input}
        made = [name for node in nodes for name in node.output]
        tensors = [tensor for tensor in graph.initializer if tensor.name in used]
        taken = used - set(made) - {tensor.name for tensor in tensors} - {""}
        outputs = [values[name] for name in made if name in wanted]
        inputs = [values[name] for name in sorted(taken)]
        wanted |= taken
        part = helper.make_graph(nodes, graph.name, inputs, outputs, tensors)
        part.value_info.extend(values[name] for name in made if name in values)
        whole = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        whole.graph.CopyFrom(part)
        found.append(Piece(whole, _specs(inputs), _specs(outputs)))
    return found[::-1]


def _casts(graph: onnx.GraphProto) -> dict[str, NodeProto]:
    """The casts of stored tensors by what they give: they go with the pieces that use them."""
    stored = {tensor.name for tensor in graph.initializer}
    found = (node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored)
    return {node.output[0]: node for node in found}


def _runs(graph: onnx.GraphProto, casts: Mapping[str, NodeProto]) -> Iterator[list[NodeProto]]:
    """The nodes block by block, without the casts."""
    parameters = {tensor.name for tensor in graph.initializer if "." in tensor.name} | set(casts)
    current: str | None = None
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in casts:
            continue
        names = [name for name in node.input if name in parameters]
        block = _BLOCK.match(names[0]) if names else None
        if block and block[0] != current:
            if current is not None:
                yield nodes
                nodes = []
            current = block[0]
        nodes.append(node)
    yield nodes


def _specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            value.name,
            _DTYPES[value.type.tensor_type.elem_type],
            tuple(side.dim_value for side in value.type.tensor_type.shape.dim),
        )
        for value in values
    )
