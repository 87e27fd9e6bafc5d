"""A graph as a sequence of smaller ones, which a small machine loads one after the other.

The cuts go between nodes of the traced graph, so the parts compute what the whole computes, node
for node. Each part holds about the same share of the weights; near such a place, the cut goes
where the fewest bytes cross it. Skip connections cross too: a part takes any earlier part's values.

In a part, large products of queries and keys are made block by block of the queries. Every row of
them is a softmax of its own, so this is exact, and it keeps one block in memory in place of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import onnx_ir as ir

from edgediffusion.manifest import GraphSpec, PartSpec, TensorSpec
from edgediffusion_export.rewrites.moments import find_moments

BLOCK_BYTES: Final = 64 << 20
"""The largest product of queries and keys that a part keeps in memory at once."""

_SLACK: Final = 0.15
"""How far a cut may move for the sake of fewer bytes across it, as a share of a part's weights."""


def split(model: ir.Model, spec: GraphSpec, count: int) -> list[tuple[PartSpec, ir.Model]]:
    """Cut a graph of static shapes into ``count`` parts, or fewer if its weights are so few."""
    graph = model.graph
    nodes = [node for node in graph if not _is_constant(node)]
    uses = [_inputs_of(node) for node in nodes]
    moments = find_moments(nodes)  # as outputs they stay in float32 where OpenVINO computes in bf16
    edges = [0, *_cuts(nodes, uses, count), len(nodes)]
    parts = []
    for index, (start, end) in enumerate(pairwise(edges)):
        made = _values(node.outputs for node in nodes[start:end])
        wanted = _values([*uses[end:], graph.outputs])
        inputs = [value for value in _values(uses[start:end]) if value not in made]
        outputs = [value for value in made if value in wanted or value in moments]
        extracted = ir.convenience.extract(graph, inputs, outputs)
        block_attention(extracted)
        part = PartSpec(
            file=f"{spec.file.removesuffix('.onnx')}.part-{index + 1}.onnx",
            inputs=tuple(map(tensor_spec, inputs)),
            outputs=tuple(map(tensor_spec, outputs)),
        )
        parts.append((part, ir.Model(extracted, ir_version=model.ir_version)))
    return parts


def block_attention(graph: ir.Graph, largest: int = BLOCK_BYTES) -> int:
    """Make large products of queries and keys block by block; return how many were changed."""
    chains = [chain for node in graph if (chain := _attention(node))]
    blocks = [_blocks(softmax.outputs[0], largest) for _, softmax, _ in chains]
    for chain, count in zip(chains, blocks, strict=True):
        if count > 1:
            _in_blocks(graph, chain, count)
    return sum(count > 1 for count in blocks)


def _cuts(nodes: Sequence[Any], uses: Sequence[Sequence[Any]], count: int) -> list[int]:
    """The nodes before which to cut: near equal weights, where the fewest bytes cross."""
    weights = list(accumulate(_new_weights(nodes)))
    crossing = _crossing(nodes, uses)
    share = weights[-1] / count
    cuts: list[int] = []
    for target in (share * (i + 1) for i in range(count - 1)):
        first = cuts[-1] if cuts else 0
        near = [
            at
            for at in range(first + 1, len(nodes))
            if abs(weights[at - 1] - target) <= _SLACK * share
        ]
        if near:
            cuts.append(min(near, key=lambda at: crossing[at]))
    return cuts


def _new_weights(nodes: Sequence[Any]) -> Iterator[int]:
    """For each node, the bytes of the weights that it is the first to use."""
    seen = set()
    for node in nodes:
        weights = [w for value in node.inputs for w in _weights_behind(value) if w not in seen]
        seen.update(weights)
        yield sum(_nbytes(weight) for weight in dict.fromkeys(weights))


def _crossing(nodes: Sequence[Any], uses: Sequence[Sequence[Any]]) -> list[int]:
    """For each node, the bytes that a cut before it would have to hand over."""
    last = {value: at for at, used in enumerate(uses) for value in used}
    change = [0] * (len(nodes) + 1)
    for at, node in enumerate(nodes):
        for value in node.outputs:
            if value in last:
                change[at + 1] += _nbytes(value)
                change[last[value] + 1] -= _nbytes(value)
    return list(accumulate(change))


def _inputs_of(node: Any) -> list[Any]:
    """What a node takes of the graph's inputs and of other nodes, weights left out."""
    return [value for value in node.inputs if value is not None and not _is_weight(value)]


def _is_weight(value: Any) -> bool:
    """Whether a value is stored, or made of nothing but what is stored (a Cast of it)."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and _is_constant(producer))


def _is_constant(node: Any) -> bool:
    return all(value is None or value.is_initializer() for value in node.inputs)


def _weights_behind(value: Any) -> list[Any]:
    """The values as which a part holds a stored tensor: itself, or what is cast from it."""
    return [value] if value is not None and _is_weight(value) else []


def _values(groups: Any) -> dict[Any, None]:
    """The distinct values of some groups, in order."""
    return dict.fromkeys(value for group in groups for value in group)


def _attention(softmax: Any) -> tuple[Any, Any, Any] | None:
    """The product of queries and keys, its softmax, and the product with the values."""
    if softmax.op_type != "Softmax":
        return None
    product, users = softmax.inputs[0].producer(), softmax.outputs[0].consumers()
    if product is None or [product.op_type, *(n.op_type for n in users)] != ["MatMul", "MatMul"]:
        return None
    return product, softmax, users[0]


def _blocks(product: Any, largest: int) -> int:
    """The fewest equal blocks of rows that stay within ``largest`` bytes each."""
    rows: int = product.shape[-2]
    whole = (n for n in range(1, rows + 1) if rows % n == 0)
    return next(n for n in whole if _nbytes(product) // n <= largest or n == rows)


def _in_blocks(graph: ir.Graph, chain: tuple[Any, Any, Any], count: int) -> None:
    """Replace an attention by ``count`` of them, one for each block of the queries."""
    product, softmax, mixed = chain
    queries, keys = product.inputs
    values = mixed.inputs[1]
    name = softmax.name
    cut = ir.node(
        "Split", [queries], {"axis": -2, "num_outputs": count}, num_outputs=count, name=f"{name}.q"
    )
    made = [cut]
    results = []
    for index, rows in enumerate(cut.outputs):
        scores = ir.node("MatMul", [rows, keys], name=f"{name}.{index}.scores")
        shares = ir.node("Softmax", scores.outputs, {"axis": -1}, name=f"{name}.{index}.softmax")
        result = ir.node("MatMul", [shares.outputs[0], values], name=f"{name}.{index}.mixed")
        made += [scores, shares, result]
        results.append(result.outputs[0])
    made.append(ir.node("Concat", results, {"axis": -2}, name=f"{name}.joined"))
    for node, like in ((cut, queries), (made[-1], mixed.outputs[0])):
        _describe(node, like, count if node is cut else 1)
    for node in made[1:-1]:
        like = mixed.outputs[0] if node.outputs[0] in results else softmax.outputs[0]
        _describe(node, like, count)
    ir.convenience.replace_nodes_and_values(
        graph, product, list(chain), made, mixed.outputs, made[-1].outputs
    )


def _describe(node: Any, like: Any, blocks: int) -> None:
    """Give a node's outputs the type and shape of ``like``, cut into blocks of rows."""
    sides = list(like.shape)
    sides[-2] //= blocks
    for index, output in enumerate(node.outputs):
        output.name = output.name or f"{node.name}.out.{index}"
        output.type = like.type
        output.shape = ir.Shape(sides)


def tensor_spec(value: Any) -> TensorSpec:
    """Describe a value of a graph as the manifest does."""
    return TensorSpec(value.name, value.dtype.numpy().name, tuple(value.shape))


def _nbytes(value: Any) -> int:
    elements = 1
    for side in value.shape:
        elements *= side
    return elements * int(value.dtype.itemsize)
