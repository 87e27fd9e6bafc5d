"""What should have been fused for CUDA, counted in the plain graph by other means than the rules.

A rule that no longer matches, after an update of torch or onnxscript, would make a graph slower and
nothing else: these counts are how an export notices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import onnx_ir as ir

from edgediffusion_export.cuda_rules import DOMAIN, SPLIT_GELU_WIDTHS, fits_group_norm

_AFFINE: Final = ("Add", "Mul", "Reshape")
"""From a group norm's result back to its InstanceNormalization: shift, scale, shape."""


def fused_counts(fused: ir.Model) -> dict[str, int]:
    """How much was fused of each kind."""
    nodes = [node for node in fused.graph if node.domain == DOMAIN]
    got = Counter(node.op_type for node in nodes)
    norms = [node for node in nodes if node.op_type in ("GroupNorm", "SkipGroupNorm")]
    return {
        "group norms": len(norms),
        "SiLUs behind them": sum(node.attributes["activation"].as_int() for node in norms),
        "sums before them": got["SkipGroupNorm"],
        "attentions": got["MultiHeadAttention"],
        "layer norms with a sum": got["SkipLayerNormalization"],
        "gates": got["BiasSplitGelu"],
        "biased sums": got["BiasAdd"],
    }


def fusible_counts(plain: ir.Model) -> dict[str, int]:
    """How much of each kind a plain graph holds."""
    norms = [node for node in plain.graph if _is_group_norm(node)]
    sums = [node for node in plain.graph if _is_sum_of_tokens(node)]
    return {
        "group norms": len(norms),
        "SiLUs behind them": sum(_is_silu_of(node, norms) for node in plain.graph),
        "sums before them": len(set(_sums_of_pictures(norms))),
        "attentions": sum(node.op_type == "Softmax" for node in plain.graph),
        "layer norms with a sum": sum(_feeds_layer_norm(node) for node in sums),
        "gates": sum(map(_is_gate, plain.graph)),
        "biased sums": sum(not _feeds_layer_norm(n) and _is_biased(n) for n in sums),
    }


def missing(found: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """Say each kind of which not exactly what was wanted was found."""
    return [f"{found[n]} of {wanted[n]} {n}" for n in wanted if found[n] != wanted[n]]


def _is_group_norm(node: ir.Node) -> bool:
    """Whether a node normalises the groups of a picture whose size CUDA's kernel takes."""
    if node.op_type != "InstanceNormalization":
        return False
    picture, groups = _picture_of(node), node.inputs[1]
    shapes = (picture and picture.shape, groups and groups.shape)
    return bool(
        shapes[0]
        and shapes[1]
        and shapes[0].rank() == 4
        and fits_group_norm(int(shapes[0][1]), int(shapes[1][0]))
    )


def _picture_of(norm: ir.Node) -> ir.Value | None:
    """What is normalised, before it is reshaped into its groups."""
    grouped = norm.inputs[0]
    reshape = grouped.producer() if grouped else None
    return reshape.inputs[0] if reshape else None


def _is_silu_of(node: ir.Node, norms: list[ir.Node]) -> bool:
    if node.op_type != "Sigmoid":
        return False
    behind = _producer(node, 0)
    for name in _AFFINE:
        if behind is None or behind.op_type != name:
            return False
        behind = _producer(behind, 0)
    return behind in norms


def _sums_of_pictures(norms: list[ir.Node]) -> Iterator[ir.Node]:
    """Yield what adds a picture, or a number for each channel, to what is then normalised."""
    for norm in norms:
        picture = _picture_of(norm)
        total = picture.producer() if picture else None
        if total is None or total.op_type != "Add":
            continue
        one, other = total.inputs
        if one is None or other is None or one.shape is None or other.shape is None:
            continue
        each_channel = [*list(one.shape)[:2], 1, 1]
        if list(other.shape) in (list(one.shape), each_channel):
            yield total


def _is_sum_of_tokens(node: ir.Node) -> bool:
    """Whether a node adds two results of one shape (batch, tokens, channels)."""
    if node.op_type != "Add" or any(_is_constant(each) for each in node.inputs):
        return False
    first, second = (each and each.shape for each in node.inputs)
    return bool(first and second and first.rank() == 3 and first == second)


def _is_biased(total: ir.Node) -> bool:
    added = [_producer(total, index) for index in range(2)]
    return any(
        node is not None and node.op_type == "Add" and any(map(_is_constant, node.inputs))
        for node in added
    )


def _feeds_layer_norm(node: ir.Node) -> bool:
    return any(use.op_type == "LayerNormalization" for use in node.outputs[0].consumers())


def _is_gate(node: ir.Node) -> bool:
    half = node.inputs[0].shape if node.op_type == "Gelu" and node.inputs[0] else None
    split = _producer(node, 0) if half else None
    return bool(
        half and split and split.op_type == "Split" and 2 * int(half[-1]) in SPLIT_GELU_WIDTHS
    )


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    return value.producer() if value is not None else None


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None
