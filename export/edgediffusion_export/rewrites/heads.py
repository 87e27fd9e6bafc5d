"""Attention heads as wide as the tiles of the unit that multiplies.

AMX multiplies tiles whose rows hold 32 numbers of bf16, so a head whose width is no multiple of
that leaves a part of a tile idle. Here such heads are padded with zeros: zero columns behind the
projections of queries and keys add nothing to a score, zero columns behind that of the values give
zeros, and zero rows in the output projection leave them out. The scale is a constant of the graph
and stays.

Exact: the sums get nothing but zeros. OpenVINO gives the same bits in float32 (Stable Diffusion
1.5, OpenVINO 2026.4). The price: in that UNet 20 of 32 attentions have heads of 40 or 80 numbers,
which become 64 or 96. Their projections grow by 30 % in bytes, 27 MB in float32, and by 39 % in
products, 3 % of a step's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from edgediffusion_export.rewrites.patch import (
    Patch,
    attribute,
    is_weight,
    only_user,
    scalar,
    static_shape,
)

TILE: Final = 32
"""How many numbers of bf16 a row of AMX's tiles holds."""

Sizes = tuple[int, ...]

_BETWEEN: Final = ("Add", "Expand", "Mul", "Reshape", "Transpose")
"""What may stand between a projection and a product of attention, the other input a constant."""

_SHAPED: Final = ("Expand", "Reshape")
"""Those whose second input is the shape of the output."""


@dataclass(frozen=True)
class Strand:
    """A projection and all values between it and a product of attention.

    Heads of ``width`` numbers are on one ``side`` of what the projection multiplies with, and on
    one of ``sides`` of each value.
    """

    projection: ir.Node
    side: int
    width: int
    sides: Mapping[Any, int]


def pad_heads(model: ir.Model) -> int:
    """Pad the heads of all attentions to whole tiles."""
    found = [strands for node in model.graph if (strands := _match(node))]
    for strand in (each for strands in found for each in strands):
        _pad(model.graph, strand)
    return len(found)


def _match(softmax: ir.Node) -> list[Strand]:
    """Read the attention around a softmax: its strands that need zeros.

    None of them if one is not understood: widths that are padded in part do not fit together.
    """
    if softmax.op_type != "Softmax":
        return []
    scores, weighted = softmax.inputs[0].producer(), only_user(softmax.outputs[0])
    if scores is None or weighted is None or {scores.op_type, weighted.op_type} != {"MatMul"}:
        return []
    strands = (
        _strand_to(scores.inputs[0], -1),
        _strand_to(scores.inputs[1], -2),
        _strand_to(weighted.inputs[1], -1),
        _strand_from(weighted.outputs[0]),
    )
    known = [each for each in strands if each is not None]
    return [each for each in known if each.width % TILE] if len(known) == len(strands) else []


def _strand_to(factor: ir.Value, side: int) -> Strand | None:
    """From a projection to a factor of a product, whose ``side`` holds the width."""
    nodes: list[ir.Node] = []
    shape, value, node = static_shape(factor), factor, factor.producer()
    while node is not None and node.op_type in _BETWEEN:
        nodes.insert(0, node)
        value = node.inputs[0]
        node = value.producer()
    if shape is None or len(shape) < 2 or node is None or not _is_projection(node):
        return None
    width = shape[side]
    sides = _follow(value, nodes, width)
    if sides is None or sides[factor] != len(shape) + side:
        return None
    return Strand(node, side=1, width=width, sides=sides)


def _strand_from(weighted: ir.Value) -> Strand | None:
    """From the weighted values to the projection of the output."""
    nodes: list[ir.Node] = []
    shape, value, node = static_shape(weighted), weighted, only_user(weighted)
    while node is not None and node.op_type in _BETWEEN:
        nodes.append(node)
        value = node.outputs[0]
        node = only_user(value)
    if shape is None or node is None or not _is_projection(node) or node.inputs[0] is not value:
        return None
    sides = _follow(weighted, nodes, shape[-1])
    if sides is None or sides[value] != len(static_shape(value) or ()) - 1:
        return None
    return Strand(node, side=0, width=shape[-1], sides=sides)


def _is_projection(node: ir.Node) -> bool:
    """Whether a node multiplies with a stored matrix."""
    if node.op_type != "MatMul" or not is_weight(node.inputs[1]):
        return False
    return len(static_shape(node.inputs[1]) or ()) == 2


def _follow(value: ir.Value, nodes: Sequence[ir.Node], width: int) -> dict[Any, int] | None:
    """Which side of each value holds the width, from one on where it is the last side.

    None where a value is read elsewhere too, or a node does more than move its numbers.
    """
    shape = static_shape(value)
    if shape is None or shape[-1] % width:
        return None
    sides: dict[Any, int] = {value: len(shape) - 1}
    for node in nodes:
        alone = node.inputs[0] is value and only_user(value) is node
        side = _side_behind(node, sides[value], width) if alone else None
        if side is None:
            return None
        value = node.outputs[0]
        sides[value] = side
    return sides if only_user(value) is not None else None


def _side_behind(node: ir.Node, side: int, width: int) -> int | None:
    """Which side of a node's output holds the width, where ``side`` of its first input does."""
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if before is None or after is None:
        return None
    if node.op_type == "Transpose":
        order = attribute(node, "perm", ())
        return order.index(side) if side in order else None
    if node.op_type == "Reshape":
        return _side_reshaped(before, after, side, width)
    if node.op_type == "Mul" and scalar(node.inputs[1]) is None:
        return None
    if node.op_type == "Add" and not _is_bias(node.inputs[1], before[side:]):
        return None
    return side if len(before) == len(after) and before[side] == after[side] else None


def _side_reshaped(before: Sizes, after: Sizes, side: int, width: int) -> int | None:
    """The side with as many numbers behind it, if it holds whole heads or one.

    Then a number is at the same place of its head before and behind the reshape.
    """
    behind = prod(before[side + 1 :])
    fits = (
        i for i, size in enumerate(after) if size % width == 0 and prod(after[i + 1 :]) == behind
    )
    return next(fits, None)


def _is_bias(value: ir.Value | None, shape: Sizes) -> bool:
    return is_weight(value) and len(shape) == 1 and static_shape(value) == shape


def _pad(graph: ir.Graph, strand: Strand) -> None:
    """Put zeros into the constants of a strand, and say so in all shapes."""
    _pad_constant(graph, strand.projection, strand.width, strand.side)
    for value, side in strand.sides.items():
        shape = list(value.shape)
        shape[side] = shape[side] // strand.width * _padded(strand.width)
        value.shape = ir.Shape(shape)
        node = value.producer()
        if node.op_type == "Add":
            _pad_constant(graph, node, strand.width)
        elif node.op_type in _SHAPED:
            name = f"shape.{'x'.join(map(str, shape))}"
            sizes = Patch(graph, node).constant(name, np.array(shape, np.int64))
            node.replace_input_with(1, sizes)


def _padded(width: int) -> int:
    return -(-width // TILE) * TILE


def _pad_constant(graph: ir.Graph, node: ir.Node, width: int, side: int = 0) -> None:
    """Let a node take its constant with zeros behind each head; engines fold this at load."""
    patch, value = Patch(graph, node), node.inputs[1]
    before, (count, *after) = list(value.shape[:side]), value.shape[side:]
    heads, padded = count // width, _padded(width)
    ends = np.zeros(2 * (len(value.shape) + 1), np.int64)
    ends[len(value.shape) + 2 + side] = padded - width
    pads = patch.constant(f"ends.{'x'.join(map(str, ends))}", ends)
    apart = patch.reshape(value, *before, heads, width, *after)
    apart.shape = ir.Shape([*before, heads, width, *after])
    wide = patch.add("Pad", apart, pads)
    wide.shape = ir.Shape([*before, heads, padded, *after])
    flat = patch.reshape(wide, *before, heads * padded, *after)
    flat.shape = ir.Shape([*before, heads * padded, *after])
    node.replace_input_with(1, flat)
