"""Floating-point operations and bytes of a graph, counted from its ONNX file.

    cost = count(Path("unet/512x512.b2.onnx"))
    cost.flops["conv"], cost.flops["matmul"], cost.flops["attention"], cost.flops["other"]
    cost.weight_bytes, cost.activation_bytes, cost.unfused_bytes

Operations. A multiplication and an addition are two. Convolutions and matrix products count without
their bias, as PyTorch's counter does; a product of two activations is ``attention``. All the rest
is ``other``, and small: one operation for each element of an elementwise result whatever the
function, five for a softmax, six for a normalisation, one for each element that is reduced.

Bytes. Shapes are static, so what depends on weights and shapes alone is folded when the graph is
loaded, and weights count in the dtype that the arithmetic reads. ``unfused_bytes`` is what goes
in and out of every node by itself. ``activation_bytes`` is what a well-fusing engine cannot avoid:

- views (Reshape and the like) move nothing;
- elementwise operations stay with the last of the operations that feed them;
- the scores of an attention never leave the cache: product, softmax and product are one operation;
- everything else reads each of its inputs once, and writes its result once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final, Literal

import onnx
from onnx import ModelProto, NodeProto

from edgediffusion.errors import EngineError

Kind = Literal["conv", "matmul", "attention", "other"]
KINDS: Final[tuple[Kind, ...]] = ("conv", "matmul", "attention", "other")

_CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
_PRODUCTS: Final = frozenset({"Gemm", "MatMul"})
_ATTENTIONS: Final = frozenset({"Attention", "com.microsoft.MultiHeadAttention"})
_VIEWS: Final = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_SELECTIONS: Final = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
_MOVES: Final = _SELECTIONS | {
    "Concat", "DepthToSpace", "Expand", "Pad", "Resize", "SpaceToDepth", "Split", "Tile",
    "Transpose",
}  # fmt: skip
_ELEMENTWISE: Final = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "DequantizeLinear", "Div", "Elu", "Equal",
    "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
    "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
})  # fmt: skip
_PER_INPUT_ELEMENT: Final[Mapping[str, int]] = {
    "ArgMax": 1, "AveragePool": 1, "CumSum": 1, "GlobalAveragePool": 1, "MaxPool": 1,
    "ReduceL2": 2, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Softmax": 5,
    # mean 1; subtract, square, add 3; scale and shift 2
    "BatchNormalization": 6, "GroupNormalization": 6, "InstanceNormalization": 6,
    "LayerNormalization": 6, "RMSNormalization": 4,
}  # fmt: skip
_KNOWN: Final = (
    _CONVOLUTIONS | _PRODUCTS | _ATTENTIONS | _VIEWS | _MOVES | _ELEMENTWISE
    | _PER_INPUT_ELEMENT.keys()
)  # fmt: skip


@dataclass(frozen=True)
class NodeCost:
    """What one node does; bytes as if nothing were fused."""

    name: str
    operator: str
    kind: Kind
    flops: int
    weight_bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class GraphCost:
    """What a graph does; ``activation_bytes`` under the model of this module's docstring."""

    nodes: tuple[NodeCost, ...]
    weight_bytes: int
    activation_bytes: int

    @property
    def flops(self) -> dict[Kind, int]:
        """Operations by kind."""
        return {k: sum(node.flops for node in self.nodes if node.kind == k) for k in KINDS}

    @property
    def matrix_flops(self) -> int:
        """Convolutions, matrix products and attention's products: what a matrix unit can do."""
        return sum(node.flops for node in self.nodes if node.kind != "other")

    @property
    def unfused_bytes(self) -> int:
        """Activations in and out of every node by itself."""
        return sum(node.read_bytes + node.written_bytes for node in self.nodes)


def count(path: Path) -> GraphCost:
    """Count the graph in a file; its external data is not read. Raises EngineError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise EngineError(f"{path} is not a readable ONNX file: {error}") from error
    return count_model(model, str(path))


def count_model(model: ModelProto, name: str = "the graph") -> GraphCost:
    """Count a loaded model. Raises EngineError for operators and shapes that are not known."""
    graph = _Graph(model, name)
    nodes = tuple(_node_cost(graph, node) for node in graph.running)
    weights = {each for node in graph.running for each in graph.weights_of(node)}
    return GraphCost(nodes, sum(map(graph.size, weights)), _fused_traffic(graph))


class _Graph:
    """A model's nodes that run, and the shapes, sizes and origins of its tensors."""

    def __init__(self, model: ModelProto, name: str) -> None:
        self.name = name
        self._types = {each.name: (tuple(each.dims), each.data_type) for each in
                       model.graph.initializer}  # fmt: skip
        self._types |= _declared(model)
        missing = {out for node in model.graph.node for out in node.output} - self._types.keys()
        if missing - {""}:
            self._types |= _declared(onnx.shape_inference.infer_shapes(model, data_prop=True))
        self.constants = {each.name for each in model.graph.initializer}
        self.outputs = {each.name for each in model.graph.output}
        self.running = list(self._fold(model.graph.node))

    def _fold(self, nodes: Iterator[NodeProto]) -> Iterator[NodeProto]:
        """Yield the nodes that depend on the graph's inputs; note the results of the others."""
        for node in nodes:
            if node.op_type == "Shape" or all(each in self.constants for each in _given(node)):
                self.constants |= set(node.output)
            elif operator(node) in _KNOWN:
                yield node
            else:
                raise EngineError(
                    f"{self.name}: benchmarks/flops.py cannot count operator {operator(node)!r} "
                    f"(node {node.name!r}): add it to the tables there"
                )

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self._type(tensor)[0]

    def size(self, tensor: str) -> int:
        """Bytes of a tensor."""
        shape, dtype = self._type(tensor)
        return prod(shape) * int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize)

    def _type(self, tensor: str) -> tuple[tuple[int, ...], int]:
        if tensor not in self._types:
            raise EngineError(
                f"{self.name}: tensor {tensor!r} has no static shape: export the graph with static "
                "shapes (edgediffusion export does)"
            )
        return self._types[tensor]

    def activations_of(self, node: NodeProto) -> list[str]:
        return [each for each in dict.fromkeys(_given(node)) if each not in self.constants]

    def weights_of(self, node: NodeProto) -> list[str]:
        """Constants that a node's arithmetic reads; a selection reads some rows of its table."""
        if operator(node) in _VIEWS | _SELECTIONS:
            return []
        return [each for each in dict.fromkeys(_given(node)) if each in self.constants]


def operator(node: NodeProto) -> str:
    """A node's operator, with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _given(node: NodeProto) -> list[str]:
    return [each for each in node.input if each]


def _declared(model: ModelProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """Every tensor of which the file says a static shape."""
    found = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            dims = tuple(d.dim_value for d in tensor.shape.dim)
            found[value.name] = (dims, tensor.elem_type)
    return found


def _node_cost(graph: _Graph, node: NodeProto) -> NodeCost:
    kind = _kind(graph, node)
    written = sum(graph.size(each) for each in node.output if each)
    read = sum(map(graph.size, graph.activations_of(node)))
    if operator(node) in _VIEWS:
        read = written = 0
    elif operator(node) in _SELECTIONS:
        read = written
    weights = sum(map(graph.size, graph.weights_of(node)))
    flops = _flops(graph, node)
    return NodeCost(node.name, operator(node), kind, flops, weights, read, written)


def _kind(graph: _Graph, node: NodeProto) -> Kind:
    if operator(node) in _CONVOLUTIONS:
        return "conv"
    if operator(node) in _ATTENTIONS or _multiplies_activations(graph, node):
        return "attention"
    return "matmul" if operator(node) in _PRODUCTS else "other"


def _multiplies_activations(graph: _Graph, node: NodeProto) -> bool:
    return operator(node) in _PRODUCTS and not graph.constants & set(node.input[:2])


def _flops(graph: _Graph, node: NodeProto) -> int:
    out = prod(graph.shape(node.output[0]))
    first = graph.shape(node.input[0])
    match operator(node):
        case "Conv":
            return 2 * out * prod(graph.shape(node.input[1])[1:])
        case "ConvTranspose":
            return 2 * prod(first) * prod(graph.shape(node.input[1])[1:])
        case "MatMul":
            return 2 * out * first[-1]
        case "Gemm":
            return 2 * out * first[0 if _attribute(node, "transA") else 1]
        case name if name in _ATTENTIONS:  # query times keys, and the result times values
            return 2 * graph.shape(node.input[1])[-2] * (prod(first) + out)
        case name if name in _ELEMENTWISE:
            return out
        case name:
            return prod(first) * _PER_INPUT_ELEMENT.get(name, 0)


def _attribute(node: NodeProto, name: str) -> int:
    return next((each.i for each in node.attribute if each.name == name), 0)


def _fused_traffic(graph: _Graph) -> int:
    """Bytes of activations that cross between groups of fused nodes."""
    root: dict[str, str] = {}  # a view's result is its input's memory
    group: dict[str, int] = {}  # the group that made a tensor; graph inputs have none
    heads: list[NodeProto] = []  # the node that began each group
    reads: dict[tuple[int, str], int] = {}
    for node in graph.running:
        inputs = [root.get(each, each) for each in graph.activations_of(node)]
        if operator(node) in _VIEWS:
            root[node.output[0]] = inputs[0]
            continue
        mine = _joined(graph, node, [group[each] for each in inputs if each in group], heads)
        if mine is None:
            mine = len(heads)
            heads.append(node)
        group |= dict.fromkeys(node.output, mine)
        selected = graph.size(node.output[0]) if operator(node) in _SELECTIONS else None
        for each in inputs:
            if group.get(each) != mine:
                reads[mine, each] = graph.size(each) if selected is None else selected
    results = {root.get(each, each) for each in graph.outputs}
    crossing = {tensor for _, tensor in reads} | results
    return sum(reads.values()) + sum(graph.size(each) for each in crossing if each in group)


def _joined(
    graph: _Graph, node: NodeProto, makers: list[int], heads: list[NodeProto]
) -> int | None:
    """The group that a node stays in, of the groups that made its inputs; None: it begins one."""
    if not makers:
        return None
    if operator(node) in _ELEMENTWISE:
        return max(makers)
    from_scores = _multiplies_activations(graph, heads[makers[0]])
    goes_on = operator(node) == "Softmax" or _multiplies_activations(graph, node)
    return makers[0] if from_scores and goes_on else None
