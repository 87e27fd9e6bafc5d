"""Which operators of opset 20 ONNX Runtime's CUDA provider has kernels for, and in which numbers.

From the table that ONNX Runtime generates from its registered kernels, docs/OperatorKernels.md, as
of release 1.31: the operators that our graphs have, and the type of each one's data.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
_INTS = {TensorProto.INT32, TensorProto.INT64}
_ALL = _FLOATS | _INTS | {TensorProto.BOOL}

KERNELS = {
    "": {
        "Add": _FLOATS | _INTS, "Cast": _ALL, "Concat": _ALL, "Conv": _FLOATS, "Cos": _FLOATS,
        "Div": _FLOATS | _INTS, "Equal": _ALL, "Expand": _ALL, "Gather": _ALL,
        "GatherND": _FLOATS | {TensorProto.INT64, TensorProto.BOOL}, "Gelu": _FLOATS,
        "Gemm": _FLOATS, "InstanceNormalization": _FLOATS, "IsNaN": _FLOATS,
        "LayerNormalization": _FLOATS, "Less": _FLOATS | _INTS, "MatMul": _FLOATS,
        "Mul": _FLOATS | _INTS, "ReduceMax": _FLOATS | _INTS, "Relu": _FLOATS, "Reshape": _ALL,
        "Resize": _FLOATS | {TensorProto.INT32}, "Sigmoid": _FLOATS, "Sin": _FLOATS,
        "Slice": _ALL, "Softmax": _FLOATS, "Split": _ALL, "Sub": _FLOATS | _INTS,
        "Tanh": _FLOATS, "Transpose": _ALL, "Unsqueeze": _ALL, "Where": _FLOATS | _INTS,
    },
    "com.microsoft": dict.fromkeys(
        ("BiasAdd", "BiasSplitGelu", "GroupNorm", "MultiHeadAttention", "SkipGroupNorm",
         "SkipLayerNormalization"),
        _FLOATS,
    ),
}  # fmt: skip
"""No ArgMax: its CUDA kernels end with opset 11."""


def without_kernel(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the nodes that the CUDA provider would leave to another, with their numbers."""
    types = _types(model)
    for node in model.graph.node:
        data = node.input[1] if node.op_type == "Where" else node.input[0]
        if types[data] not in KERNELS[node.domain].get(node.op_type, ()):
            yield f"{node.op_type}({TensorProto.DataType.Name(types[data])})"


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor; a result is of its node's first data unless it says so."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        types |= dict.fromkeys(node.output, _result(node, types))
    return types


def _result(node: NodeProto, types: dict[str, int]) -> int:
    if node.op_type in ("Equal", "Less", "IsNaN"):
        return TensorProto.BOOL
    if node.op_type == "Cast":
        return next(int(each.i) for each in node.attribute if each.name == "to")
    if node.op_type == "ArgMax":
        return TensorProto.INT64
    return types[node.input[1] if node.op_type == "Where" else node.input[0]]
