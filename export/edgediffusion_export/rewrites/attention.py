"""Self-attention as one operator, which never holds all scores.

Traced, attention is a product of queries and keys, a softmax and a product with the values; at
64x64 latents the scores of eight heads are half a gigabyte a picture, and writing and reading them
takes longer than some of the arithmetic. ``com.microsoft.MultiHeadAttention`` goes through the keys
block by block with a running softmax (Dao et al. 2022, arXiv:2205.14135, as ONNX Runtime does it
on CPUs), and takes the heads side by side as the projections give them. OpenVINO takes it too.

Exact in real numbers; only the order of the sums changes. Attention with a mask (CLIP's) stays: it
is small, and the operator is slower with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from edgediffusion_export.rewrites.patch import Patch, attribute, scalar, static_shape

LEAST_TOKENS: Final = 256
"""With fewer queries or keys there is nothing to gain; text has 77."""

DOMAIN: Final = "com.microsoft"

Sides = tuple[int, ...] | None
"""The order of a transpose; None for operators that have none."""

Steps = tuple[tuple[str, Sides], ...]

_HEADS: Final[Steps] = (("Transpose", (0, 2, 1, 3)), ("Reshape", None))
"""From (batch, heads, tokens, width) back to (batch, tokens, heads * width)."""

_KEYS: Final[Steps] = (("Reshape", None), ("Transpose", (0, 2, 1)), ("Reshape", None), *_HEADS)
"""From (batch, heads, width, tokens) back to the same."""


@dataclass(frozen=True)
class Attention:
    """Softmax(scale * queries @ keys) @ values in ``heads`` heads, up to the ``last`` node."""

    last: ir.Node
    queries: ir.Value
    keys: ir.Value
    values: ir.Value
    heads: int
    scale: float


def fuse_attention(model: ir.Model) -> int:
    """Replace the attention of long sequences."""
    found = [each for node in model.graph if (each := _match(node))]
    for each in found:
        patch = Patch(model.graph, each.last)
        inputs = each.queries, each.keys, each.values
        fused = patch.add(
            "MultiHeadAttention", *inputs, domain=DOMAIN, num_heads=each.heads, scale=each.scale
        )
        patch.finish(fused)
    if found:
        model.graph.opset_imports[DOMAIN] = 1
    return len(found)


def _match(softmax: ir.Node) -> Attention | None:
    """Read the attention around a softmax."""
    shape = static_shape(softmax.outputs[0])
    if softmax.op_type != "Softmax" or attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    if shape is None or len(shape) != 4 or min(shape[2:]) < LEAST_TOKENS:
        return None
    scores, weighted = _maker(softmax.inputs[0], "MatMul"), _user(softmax, "MatMul")
    if scores is None or weighted is None or weighted.inputs[0] is not softmax.outputs[0]:
        return None
    queries, by_queries = _scaled(scores.inputs[0])
    keys, by_keys = _scaled(scores.inputs[1])
    last = _user(_user(weighted, "Transpose", (0, 2, 1, 3)), "Reshape")
    sources = _back(queries, _HEADS), _back(keys, _KEYS), _back(weighted.inputs[1], _HEADS)
    if last is None or any(source is None for source in sources):
        return None
    whole = static_shape(last.outputs[0])
    if whole is None or any(static_shape(source) != whole for source in sources):
        return None
    return Attention(last, *sources, heads=shape[1], scale=by_queries * by_keys)


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before it was multiplied by a number, and the number; 1 where it was not."""
    node = _maker(value, "Mul")
    if node is None or (factor := scalar(node.inputs[1])) is None:
        return value, 1.0
    return node.inputs[0], factor


def _back(value: ir.Value | None, steps: Steps) -> ir.Value | None:
    """Go back over reshapes and transposes; None where the graph has others."""
    for kind, sides in steps:
        node = _maker(value, kind)
        if node is None or not _has_sides(node, sides):
            return None
        value = node.inputs[0]
    return value


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _user(node: ir.Node | None, kind: str, sides: Sides = None) -> ir.Node | None:
    """The only user of a node's output, if it is of that kind."""
    users = [] if node is None else [use.node for use in node.outputs[0].uses()]
    fits = len(users) == 1 and users[0].op_type == kind and _has_sides(users[0], sides)
    return users[0] if fits else None


def _has_sides(node: ir.Node, sides: Sides) -> bool:
    return sides is None or attribute(node, "perm", ()) == sides
