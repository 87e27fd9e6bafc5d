from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from edgediffusion_export.rewrites import rewrite
from edgediffusion_export.rewrites.moments import NAME, find_moments
from tests.export.rewrites.small import Small, draw


def network(*between: str) -> Small:
    """y = relu(sin(f * t) @ w) @ v, with more operators in front of the first product."""
    names = ["s", *(f"s{i}" for i in range(len(between)))]
    nodes = [
        helper.make_node("Mul", ["t", "f"], ["a"]),
        helper.make_node("Sin", ["a"], ["s"]),
        *(helper.make_node(kind, [names[i]], [names[i + 1]]) for i, kind in enumerate(between)),
        helper.make_node("MatMul", [names[-1], "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    constants = {"f": draw(4), "w": draw(4, 6, seed=1), "v": draw(6, 2, seed=2)}
    return Small(nodes, {"t": (1, 1)}, (1, 2), constants)


def outputs(model: ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.outputs]


def test_what_the_first_product_takes_becomes_an_output() -> None:
    graph = network("Neg", "Identity")
    model = graph.model()
    assert [value.name for value in find_moments(model.graph)] == ["s1"]
    assert rewrite(model, ["moments"]) == {"moments": 1}
    assert outputs(model) == ["y", NAME]
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    del model.graph.outputs[1]
    assert graph.distance(model) == 0


def test_two_moments_have_two_names() -> None:
    first, second = network(), network()
    for node in second.nodes:
        node.output[0] += "2"
        node.input[:] = [name if name in "tfwv" else f"{name}2" for name in node.input]
    both = [*first.nodes, *second.nodes]
    both.append(helper.make_node("Add", ["y", "y2"], ["z"]))
    both.append(helper.make_node("Identity", ["z"], ["sum"]))
    graph = Small(both, first.inputs, first.output, first.constants)
    for node in graph.nodes:
        node.input[:] = ["out" if name == "y" else name for name in node.input]
        node.output[:] = ["out" if name == "y" else name for name in node.output]
    graph.nodes[-1].output[0] = "y"
    model = graph.model()
    assert rewrite(model, ["moments"]) == {"moments": 2}
    assert outputs(model) == ["y", NAME, f"{NAME}_2"]


def test_a_network_without_sines_stays() -> None:
    graph = network()
    graph.nodes[1].op_type = "Neg"
    model = graph.model()
    assert rewrite(model, ["moments"]) == {}
    assert outputs(model) == ["y"]
    assert np.isfinite(graph.distance(model))
