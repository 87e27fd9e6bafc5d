from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper

from edgediffusion_export.rewrites import attention, rewrite
from tests.export.rewrites.small import Small, operators

BATCH, TOKENS, HEADS, WIDTH = 2, 12, 3, 4
SHAPE = (BATCH, TOKENS, HEADS * WIDTH)


def sides(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def traced(*, scaled: bool = True, masked: bool = False, keys: int = TOKENS) -> Small:
    """Attention as PyTorch's exporter writes it at opset 20."""
    node = helper.make_node
    nodes: list[NodeProto] = []
    for name in "qkv":
        nodes += [
            node("Reshape", [name, "apart" if name == "q" else "apart.keys"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Reshape", ["k2", "flat"], ["k3"]),
        node("Transpose", ["k3"], ["k4"], perm=[0, 2, 1]),
        node("Reshape", ["k4", "upright"], ["k5"]),
    ]
    ends = "q2", "k5"
    if scaled:
        nodes += [node("Mul", [end, "root"], [f"{end}s"]) for end in ends]
        ends = "q2s", "k5s"
    nodes.append(node("MatMul", ends, ["scores"]))
    if masked:
        nodes.append(node("Add", ["scores", "mask"], ["hidden"]))
    nodes += [
        node("Softmax", ["hidden" if masked else "scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v2"], ["heads"]),
        node("Transpose", ["heads"], ["together"], perm=[0, 2, 1, 3]),
        node("Reshape", ["together", "whole"], ["a"]),
        node("Relu", ["a"], ["y"]),
    ]
    constants = {
        "apart": sides(BATCH, TOKENS, HEADS, WIDTH),
        "apart.keys": sides(BATCH, keys, HEADS, WIDTH),
        "flat": sides(BATCH * HEADS, keys, WIDTH),
        "upright": sides(BATCH, HEADS, WIDTH, keys),
        "whole": sides(*SHAPE),
        "root": np.array(WIDTH**-0.25, np.float32),
        "mask": np.triu(np.full((TOKENS, keys), -9, np.float32), 1),
    }
    read = {each for made in nodes for each in made.input}
    kept = {name: array for name, array in constants.items() if name in read}
    inputs = {"q": SHAPE} | {name: (BATCH, keys, HEADS * WIDTH) for name in "kv"}
    return Small(nodes, inputs, SHAPE, kept)


@pytest.fixture(autouse=True)
def _short_sequences_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LEAST_TOKENS", TOKENS)


@pytest.mark.parametrize("scaled", [True, False])
def test_the_fused_operator_computes_the_same(scaled: bool) -> None:
    graph = traced(scaled=scaled)
    model = graph.model()
    assert rewrite(model, ["attention"]) == {"attention": 1}
    assert operators(model) == {"MultiHeadAttention": 1, "Relu": 1}
    assert graph.distance(model) < 1e-6


@pytest.mark.parametrize("graph", [traced(masked=True), traced(keys=5)], ids=["mask", "text"])
def test_masked_and_short_attention_stays(graph: Small) -> None:
    model = graph.model()
    assert rewrite(model, ["attention"]) == {}
    assert operators(model)["Softmax"] == 1


@pytest.mark.parametrize("place", ["q2", "k4", "v2", "together"])
def test_another_layout_stays(place: str) -> None:
    """Every transpose matters: with other sides the operator would compute something else."""
    graph = traced()
    (node,) = (node for node in graph.nodes if place in node.output)
    model = graph.model()
    (other,) = (each for each in model.graph if each.outputs[0].name == place)
    perm = list(range(len(node.attribute[0].ints)))
    other.attributes.add(
        type(other.attributes["perm"])("perm", other.attributes["perm"].type, perm)
    )
    assert rewrite(model, ["attention"]) == {}


def test_scores_that_are_read_elsewhere_stay() -> None:
    graph = traced()
    graph.nodes.insert(-1, helper.make_node("ReduceSum", ["shares"], ["sum"], keepdims=0))  # type: ignore[attr-defined]
    graph.nodes[-1].input[0] = "b"
    graph.nodes.insert(-1, helper.make_node("Add", ["a", "sum"], ["b"]))  # type: ignore[attr-defined]
    assert rewrite(graph.model(), ["attention"]) == {}
