"""The proof of a graph that is fused for CUDA, on a machine without a GPU.

The operators that only the CUDA provider has a kernel for are written out in plain ones, as their
documentation says, and the graph runs on the CPU provider against the references of the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import onnx_ir as ir

from edgediffusion.manifest import DeviceGraph, GoldenCase, GraphSpec
from edgediffusion_export.cuda_graph import fused_operators
from edgediffusion_export.cuda_rules import DOMAIN
from edgediffusion_export.parity import Array, Outputs, measure


def prove_fused(
    spec: GraphSpec,
    file: str,
    folder: Path,
    cases: Sequence[GoldenCase],
    tensors: dict[str, Array],
    wanted: Sequence[Outputs],
) -> DeviceGraph:
    """Hold the fused graph in ``file`` to the references of ``spec``; raises ParityError."""
    fused = ir.load(folder / file)
    proof = folder / file.replace(".onnx", ".proof.onnx")
    graph = ir.serde.serialize_model(written_out(fused)).SerializeToString(deterministic=True)
    proof.write_bytes(graph)
    try:
        name = proof.relative_to(folder).as_posix()
        plain = msgspec.structs.replace(spec, file=name)
        parity = measure(plain, folder, cases, tensors, wanted)
    finally:
        proof.unlink()
    return DeviceGraph(file, fused_operators(fused), parity)


def written_out(fused: ir.Model) -> ir.Model:
    """Return a copy in which operators without a CPU kernel are plain ones, as documented.

    Attentions and layer norms stay: the CPU provider has kernels of its own for them.
    """
    model = fused.clone()
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type in _WRITE_OUT:
            tape = ir.tape.Tape(model.graph)
            new = _WRITE_OUT[node.op_type](tape, node)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], tape.nodes, node.outputs[: len(new)], new
            )
    return model


def _write_group_norm(tape: Any, node: ir.Node) -> list[ir.Value]:
    """GroupNorm(X, gamma, beta), and SkipGroupNorm(X, gamma, beta, skip) with its sum."""
    x, gamma, beta, *skips = node.inputs
    for skip in skips:
        assert x is not None
        assert skip is not None
        if skip.shape is not None and skip.shape.rank() == 2:
            skip = tape.op("Unsqueeze", [skip, _constant(tape, [1, 2])])
        x = tape.op("Add", [x, skip])
    normed = _normed_by_groups(tape, node, x, gamma, beta)
    return [normed, x] if len(node.outputs) == 2 else [normed]


def _normed_by_groups(tape: Any, node: ir.Node, x: Any, gamma: Any, beta: Any) -> ir.Value:
    """Normalise a channels-last picture in float32, whatever its own numbers are."""
    groups, activation = (node.attributes[name].as_int() for name in ("groups", "activation"))
    ones, zeros = (_constant(tape, [value] * groups, ir.DataType.FLOAT) for value in (1.0, 0.0))
    first = tape.op("Transpose", [tape.op("Cast", [x], {"to": 1})], {"perm": [0, 3, 1, 2]})
    grouped = tape.op("Reshape", [first, _constant(tape, [0, groups, -1])])
    epsilon = {"epsilon": node.attributes["epsilon"].as_float()}
    normed = tape.op("InstanceNormalization", [grouped, ones, zeros], epsilon)
    back = tape.op("Reshape", [normed, tape.op("Shape", [first])])
    last = tape.op("Transpose", [back], {"perm": [0, 2, 3, 1]})
    scaled = tape.op("Add", [tape.op("Mul", [last, gamma]), beta])
    if activation:
        scaled = tape.op("Mul", [scaled, tape.op("Sigmoid", [scaled])])
    result: ir.Value = tape.op("CastLike", [scaled, x])
    return result


def _write_gate(tape: Any, node: ir.Node) -> list[ir.Value]:
    """BiasSplitGelu(X, bias): the left half times the GELU of the right one."""
    total = tape.op("Add", list(node.inputs))
    left, right = tape.op_multi_out("Split", [total], {"axis": 2, "num_outputs": 2}, num_outputs=2)
    return [tape.op("Mul", [left, tape.op("Gelu", [right])])]


def _write_residual(tape: Any, node: ir.Node) -> list[ir.Value]:
    """BiasAdd(X, bias, skip)."""
    x, bias, skip = node.inputs
    return [tape.op("Add", [tape.op("Add", [x, bias]), skip])]


def _constant(tape: Any, values: list[Any], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    value: ir.Value = tape.op("Constant", [], {"value": ir.tensor(values, dtype=dtype)})
    return value


_WRITE_OUT: Final[Mapping[str, Callable[[Any, ir.Node], list[ir.Value]]]] = {
    "GroupNorm": _write_group_norm,
    "SkipGroupNorm": _write_group_norm,
    "BiasSplitGelu": _write_gate,
    "BiasAdd": _write_residual,
}
