from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgediffusion.golden import relative_l2
from edgediffusion_export.rewrites.gates import split_gates
from tests.export.rewrites.small import Small, check, draw, let_out, operators
from tests.export.rewrites.unets import traced_unet

INS, HALF = 12, 20


def traced(*, first: bool = False, activation: str = "Gelu", axis: int = 2) -> Small:
    """A gate as PyTorch's exporter writes it at opset 20.

    first : the first half goes through the activation, where diffusers takes the second.
    """
    node = helper.make_node
    through, plain = ("l", "r") if first else ("r", "l")
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Add", ["p", "b"], ["s"]),
        node("Split", ["s"], ["l", "r"], axis=axis, num_outputs=2),
        node(activation, [through], ["g"]),
        node("Mul", [plain, "g"], ["m"]),
        node("Relu", ["m"], ["y"]),
    ]
    constants = {"w": draw(INS, 2 * HALF), "b": draw(2 * HALF, seed=1)}
    return Small(nodes, {"x": (2, 6, INS)}, (2, 6, HALF), constants)


@pytest.mark.parametrize("graph", [traced(), traced(first=True), traced(axis=-1)])
def test_two_products_compute_the_same(graph: Small) -> None:
    model = graph.model()
    assert split_gates(model) == 1
    check(model)
    assert operators(model) == {"MatMul": 2, "Add": 2, "Slice": 4, "Gelu": 1, "Mul": 1, "Relu": 1}
    assert graph.distance(model) < 1e-6


def test_all_shapes_are_those_that_follow() -> None:
    model = traced().model()
    split_gates(model)
    said = {out.name: tuple(out.shape) for node in model.graph for out in node.outputs}
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    for value in inferred.value_info:
        sides = value.type.tensor_type.shape.dim
        assert said[value.name] == tuple(side.dim_value for side in sides)


def test_weights_kept_as_halves_are_cut_too() -> None:
    graph = traced()
    halves = {f"{name}.half": a.astype(np.float16) for name, a in graph.constants.items()}
    casts = [
        helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
        for name in graph.constants
    ]
    graph = replace(graph, nodes=[*casts, *graph.nodes], constants=halves)
    model = graph.model()
    assert split_gates(model) == 1
    check(model)
    assert graph.distance(model) < 1e-6


def test_the_parameters_stay_as_they_are() -> None:
    graph = traced()
    model = graph.model()
    split_gates(model)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)


@pytest.mark.parametrize(
    "graph", [traced(activation="Sigmoid"), traced(activation="Relu")], ids=["sigmoid", "relu"]
)
def test_other_gates_stay(graph: Small) -> None:
    model = graph.model()
    assert split_gates(model) == 0
    assert graph.distance(model) == 0


@pytest.mark.parametrize("value", ["s", "p", "g"])
def test_values_that_are_read_elsewhere_stay(value: str) -> None:
    graph = traced()
    graph.nodes[-1].output[0] = "gated"
    total = [
        helper.make_node("ReduceSum", [value], ["sum"], keepdims=0),
        helper.make_node("Add", ["gated", "sum"], ["y"]),
    ]
    assert split_gates(replace(graph, nodes=[*graph.nodes, *total]).model()) == 0


@pytest.mark.parametrize("value", ["p", "s", "l", "r", "g"])
def test_values_that_leave_the_graph_stay(value: str) -> None:
    model = traced().model()
    let_out(model, value)
    assert split_gates(model) == 0


@pytest.mark.parametrize("weight", ["w", "b"])
def test_weights_that_are_computed_stay(weight: str) -> None:
    model = traced().with_computed(weight).model()
    assert split_gates(model) == 0


def test_a_single_number_for_all_as_bias_stays() -> None:
    graph = traced()
    graph = replace(graph, constants={**graph.constants, "b": draw(1)})
    assert split_gates(graph.model()) == 0


def test_parts_of_another_size_stay() -> None:
    graph = traced()
    graph.nodes[2].ClearField("attribute")
    graph.nodes[2].attribute.append(helper.make_attribute("axis", 2))
    graph.nodes[2].input.append("sizes")
    uneven = {"sizes": np.array([1, 2 * HALF - 1], np.int64)}
    graph = replace(graph, constants=graph.constants | uneven, output=(2, 6, 2 * HALF - 1))
    assert split_gates(graph.model()) == 0


def test_halves_of_another_side_stay() -> None:
    graph = replace(traced(axis=1), output=(2, 3, 2 * HALF))
    model = graph.model()
    assert split_gates(model) == 0
    assert graph.distance(model) == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_unet_computes_the_same(batch: int, checkpoint: Path) -> None:
    unet = traced_unet(checkpoint, batch)
    model = unet.model
    plain, before = unet.run(), operators(model)
    assert split_gates(model) == before["Gelu"] == before["Split"] > 0
    check(model)
    assert operators(model)["Split"] == 0
    assert relative_l2(unet.run(), plain) < 1e-6
