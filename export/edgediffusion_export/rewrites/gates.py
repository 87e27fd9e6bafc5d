"""The two halves of a gate as two products, so that none has to be copied out of one result.

A GEGLU (Shazeer 2020, arXiv:2002.05202) projects its input to twice the width and multiplies one
half with the GELU of the other. Traced, that is one product whose result is split. In Stable
Diffusion 1.5 at 64x64 latents this result has 84 MB a block for two pictures in float32, and
OpenVINO copies both halves out of it: 1.3 % of a step (2 cores, float32). With the weight and the
bias in halves each product writes its own result.

Exact: each number is the sum that it was. The halves are slices of constants, which engines fold
when they load: together as many bytes as the whole, which nothing reads any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgediffusion_export.rewrites.patch import Patch, is_weight, only_user, static_shape


@dataclass(frozen=True)
class Gate:
    """``split`` cuts the sum of a ``product`` with a weight and of a bias into two halves."""

    split: ir.Node
    added: ir.Node
    product: ir.Node


def split_gates(model: ir.Model) -> int:
    """Let each half of a gate have a product of its own."""
    found = [gate for node in model.graph if (gate := _match(node))]
    for gate in found:
        _replace(model.graph, gate)
    return len(found)


def _match(split: ir.Node) -> Gate | None:
    """Read the gate around a split."""
    if split.op_type != "Split" or not _cuts_in_halves(split) or not _is_gate(split):
        return None
    added = _maker(split.inputs[0], "Add")
    product = added and _maker(added.inputs[0], "MatMul")
    if added is None or product is None:
        return None
    weight, bias = product.inputs[1], added.inputs[1]
    count = split.inputs[0].shape[-1]
    stored = is_weight(weight) and is_weight(bias)
    if not stored or len(static_shape(weight) or ()) != 2 or static_shape(bias) != (count,):
        return None
    return Gate(split, added, product)


def _cuts_in_halves(split: ir.Node) -> bool:
    """Whether the two outputs are the halves of the last side."""
    whole = static_shape(split.inputs[0])
    if whole is None or len(split.outputs) != 2:
        return False
    half = *whole[:-1], whole[-1] // 2
    return all(static_shape(each) == half for each in split.outputs)


def _is_gate(split: ir.Node) -> bool:
    """Whether one half is multiplied with the GELU of the other."""
    users = [only_user(each) for each in split.outputs]
    gelus = [user for user in users if user is not None and user.op_type == "Gelu"]
    products = [user for user in users if user is not None and user.op_type == "Mul"]
    if len(gelus) != 1 or len(products) != 1:
        return False
    return only_user(gelus[0].outputs[0]) is products[0]


def _maker(value: ir.Value, kind: str) -> ir.Node | None:
    """The node of that kind which makes a value for one user."""
    node = value.producer()
    fits = node is not None and node.op_type == kind and only_user(value) is not None
    return node if fits else None


def _replace(graph: ir.Graph, gate: Gate) -> None:
    patch = Patch(graph, gate.split)
    source, weight = gate.product.inputs
    bias, half = gate.added.inputs[1], weight.shape[1] // 2
    for index, old in enumerate(gate.split.outputs):
        bounds = index * half, (index + 1) * half
        product = patch.add("MatMul", source, _part(patch, weight, *bounds))
        added = patch.add("Add", product, _part(patch, bias, *bounds))
        product.shape = added.shape = old.shape
        old.replace_all_uses_with(added)
    graph.remove([gate.split, gate.added, gate.product], safe=True)


def _part(patch: Patch, value: ir.Value, start: int, stop: int) -> ir.Value:
    """Some columns of a constant."""
    side = len(value.shape) - 1
    bounds = [patch.constant(f"at.{at}", np.array([at], np.int64)) for at in (start, stop, side)]
    part = patch.add("Slice", value, *bounds)
    part.shape = ir.Shape([*value.shape[:-1], stop - start])
    return part
