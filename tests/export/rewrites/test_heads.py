from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import NodeProto, TensorProto, helper

from edgediffusion.golden import relative_l2
from edgediffusion_export.rewrites.heads import pad_heads
from tests.export.rewrites.small import Arrays, Small, check, draw, let_out, operators
from tests.export.rewrites.unets import traced_unet

BATCH, TOKENS, TEXT, CHANNELS, OUTS = 2, 12, 5, 24, 20


def sides(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


def traced(
    width: int = 40, heads: int = 3, *, text: bool = False, bias: bool = False, shared: str = ""
) -> Small:
    """Attention between its projections, as PyTorch's exporter writes it at opset 20.

    text : the keys and values are of another sequence.
    shared : the value of the queries that has one row for both, which is repeated behind it.
    """
    node = helper.make_node
    rows, keys, whole = 1 if shared else BATCH, TEXT if text else TOKENS, heads * width
    nodes: list[NodeProto] = []
    for name in "qkv":
        source = "t" if text and name != "q" else "x"
        nodes.append(node("MatMul", [source, f"{name}.weight"], [f"{name}0"]))
        if bias:
            nodes.append(node("Add", [f"{name}0", f"{name}.bias"], [f"{name}b"]))
        projected = f"{name}b" if bias else f"{name}0"
        if shared == projected:
            nodes.append(node("Expand", [projected, "rows.projected"], ["both"]))
            projected = "both"
        apart = "apart.q" if name == "q" and shared == "q3" else "apart"
        nodes += [
            node("Reshape", [projected, apart], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Reshape", ["k2", "flat"], ["k3"]),
        node("Transpose", ["k3"], ["k4"], perm=[0, 2, 1]),
        node("Reshape", ["k4", "upright"], ["k5"]),
        node("Mul", ["q2", "root"], ["q3"]),
        node("Mul", ["k5", "root"], ["k6"]),
    ]
    if shared == "q3":
        nodes.append(node("Expand", ["q3", "rows"], ["q4"]))
    nodes += [
        node("MatMul", ["q4" if shared == "q3" else "q3", "k6"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "v2"], ["heads"]),
        node("Transpose", ["heads"], ["together"], perm=[0, 2, 1, 3]),
        node("Reshape", ["together", "side by side"], ["a"]),
        node("MatMul", ["a", "o.weight"], ["o"]),
        node("Add", ["o", "o.bias"], ["y"]),
    ]
    constants = {
        "apart.q": sides(1, -1, heads, width),
        "apart": sides(BATCH, -1, heads, width),
        "flat": sides(-1, keys, width),
        "upright": sides(BATCH, heads, width, keys),
        "rows": sides(BATCH, heads, TOKENS, width),
        "rows.projected": sides(BATCH, TOKENS, whole),
        "side by side": sides(BATCH, -1, whole),
        "root": np.array([width**-0.25], np.float32),
        **{f"{n}.weight": draw(CHANNELS, whole, seed=i) / 5 for i, n in enumerate("qkv")},
        **{f"{n}.bias": draw(whole, seed=i) for i, n in enumerate("qkv")},
        "o.weight": draw(whole, OUTS, seed=3) / 10,
        "o.bias": draw(OUTS, seed=4),
    }
    inputs = {"x": (rows, TOKENS, CHANNELS)} | ({"t": (BATCH, TEXT, CHANNELS)} if text else {})
    return Small(nodes, inputs, (BATCH, TOKENS, OUTS), read_by(nodes, constants))


def read_by(nodes: Sequence[NodeProto], constants: Arrays) -> Arrays:
    read = {each for made in nodes for each in made.input}
    return {name: array for name, array in constants.items() if name in read}


def shape(model: ir.Model, name: str) -> tuple[int, ...]:
    (found,) = (out for node in model.graph for out in node.outputs if out.name == name)
    return tuple(found.shape)


def without_shapes(model: ir.Model) -> ir.Model:
    """The same graph, whose shapes between inputs and outputs nobody has said."""
    proto = ir.serde.serialize_model(model)
    del proto.graph.value_info[:]
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


@pytest.mark.parametrize(
    ("graph", "padded"),
    [
        (traced(), 64),
        (traced(80, heads=2), 96),
        (traced(8, heads=1), 32),
        (traced(bias=True), 64),
        (traced(text=True), 64),
        (traced(text=True, shared="q0"), 64),
        (traced(text=True, shared="qb", bias=True), 64),
        (traced(text=True, shared="q3"), 64),
    ],
    ids=["40", "80", "one head", "biases", "text", "row", "biased row", "scaled row"],
)
def test_padded_heads_compute_the_same(graph: Small, padded: int) -> None:
    model = graph.model()
    before = operators(model)
    assert pad_heads(model) == 1
    check(model)
    assert shape(model, "q2")[3] == shape(model, "k6")[2] == shape(model, "heads")[3] == padded
    constants = 7 if before["Add"] > 1 else 4
    made = operators(model) - before
    assert made == {"Pad": constants, "Reshape": 2 * constants}
    assert graph.distance(model) < 1e-6


@pytest.mark.parametrize("graph", [traced(bias=True), traced(text=True, shared="q3")])
def test_all_shapes_are_those_that_follow(graph: Small) -> None:
    model = graph.model()
    pad_heads(model)
    inferred = without_shapes(model)
    for node in inferred.graph:
        (value,) = node.outputs
        assert shape(model, value.name) == tuple(value.shape)


def test_the_parameters_stay_as_they_are() -> None:
    graph = traced()
    model = graph.model()
    pad_heads(model)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)
    rows = [value for value in model.graph.initializers.values() if value.dtype.is_floating_point()]
    assert {value.name for value in rows} <= set(graph.constants)


@pytest.mark.parametrize("width", [32, 64, 160])
def test_whole_tiles_stay(width: int) -> None:
    graph = traced(width)
    model = graph.model()
    assert pad_heads(model) == 0
    assert graph.distance(model) == 0


def test_a_second_time_nothing_is_left_to_do() -> None:
    model = traced().model()
    assert [pad_heads(model), pad_heads(model)] == [1, 0]


def test_weights_kept_as_halves_are_padded_too() -> None:
    graph = traced(bias=True)
    stored = [name for name in graph.constants if name.endswith(("weight", "bias"))]
    halves = {f"{name}.half": graph.constants[name].astype(np.float16) for name in stored}
    casts = [helper.make_node("Cast", [f"{n}.half"], [n], to=TensorProto.FLOAT) for n in stored]
    nodes = [*casts, *graph.nodes]
    graph = replace(graph, nodes=nodes, constants=read_by(nodes, graph.constants | halves))
    graph = replace(graph, constants={n: a for n, a in graph.constants.items() if n not in stored})
    model = graph.model()
    assert pad_heads(model) == 1
    check(model)
    assert graph.distance(model) < 1e-6


def test_only_a_width_that_needs_it_is_padded() -> None:
    """Values may have another width than queries and keys."""
    graph = traced()
    narrow = {"v.weight": draw(CHANNELS, 96), "apart.v": sides(BATCH, -1, 3, 32)}
    narrow |= {"side by side": sides(BATCH, -1, 96), "o.weight": draw(96, OUTS)}
    (reshape,) = (node for node in graph.nodes if "v1" in node.output)
    reshape.input[1] = "apart.v"
    graph = replace(graph, constants=graph.constants | narrow)
    model = graph.model()
    assert pad_heads(model) == 1
    assert (shape(model, "q2")[3], shape(model, "v2")[3]) == (64, 32)
    check(model)
    assert graph.distance(model) < 1e-6


def spliced(value: str, *kinds: tuple[str, Sequence[str]], constants: Arrays) -> Small:
    """The traced graph with operators of one input in the place where ``value`` is read."""
    graph = traced()
    nodes: list[NodeProto] = []
    for made in graph.nodes:
        made.input[:] = ["late" if each == value else each for each in made.input]
        nodes.append(made)
        if value in made.output:
            names = [value, *(f"{value}.{i}" for i in range(len(kinds) - 1)), "late"]
            for (kind, inputs), ahead, name in zip(kinds, names, names[1:], strict=False):
                filled = [ahead if each == "_" else each for each in inputs]
                nodes.append(helper.make_node(kind, filled, [name]))
    return replace(graph, nodes=nodes, constants={**graph.constants, **constants})


CONSTANTS = {
    "two": np.array(2, np.float32),
    "each": draw(40),
    "for all": draw(120),
    "steps": sides(1, 1, 1, 2),
}

OTHERS: Mapping[str, Small] = {
    "another operator": spliced("q2", ("Relu", ["_"]), constants={}),
    "one behind the values": spliced("v2", ("Sigmoid", ["_"]), constants={}),
    "one behind the product": spliced("a", ("Exp", ["_"]), constants={}),
    "a factor for each": spliced("q3", ("Mul", ["_", "each"]), constants=CONSTANTS),
    "a summand for each": spliced("q3", ("Add", ["_", "two"]), constants=CONSTANTS),
    "the number first": spliced("heads", ("Mul", ["two", "_"]), constants=CONSTANTS),
    "a mask": spliced("scores", ("Add", ["_", "two"]), constants=CONSTANTS),
    "the square": spliced("k6", ("Mul", ["_", "_"]), constants={}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_stays_as_a_whole(name: str) -> None:
    graph = OTHERS[name]
    used = {each for node in graph.nodes for each in node.input}
    graph = replace(graph, constants={n: a for n, a in graph.constants.items() if n in used})
    model = graph.model()
    before = operators(model)
    assert pad_heads(model) == 0
    assert operators(model) == before
    assert graph.distance(model) == 0


@pytest.mark.parametrize("value", ["q0", "q2", "k4", "v1", "heads", "a"])
def test_values_that_are_read_elsewhere_stay(value: str) -> None:
    graph = traced()
    last = graph.nodes[-1]
    last.output[0] = "projected"
    total = [
        helper.make_node("ReduceSum", [value], ["sum"], keepdims=0),
        helper.make_node("Add", ["projected", "sum"], ["y"]),
    ]
    graph = replace(graph, nodes=[*graph.nodes, *total])
    assert pad_heads(graph.model()) == 0


@pytest.mark.parametrize("value", ["q0", "v2", "a"])
def test_values_that_leave_the_graph_stay(value: str) -> None:
    model = traced().model()
    let_out(model, value)
    assert pad_heads(model) == 0


@pytest.mark.parametrize("weight", ["q.weight", "k.weight", "v.weight", "o.weight"])
def test_weights_that_are_computed_stay(weight: str) -> None:
    model = traced().with_computed(weight).model()
    assert pad_heads(model) == 0


def test_heads_that_are_not_side_by_side_stay() -> None:
    """The numbers of a head lie apart where the width is the outer side."""
    graph = traced(40, heads=3)
    (made,) = (node for node in graph.nodes if "q1" in node.output)
    made.output[0] = "mixed"
    turn = helper.make_node("Transpose", ["mixed"], ["q1"], perm=[0, 1, 3, 2])
    place = list(graph.nodes).index(made) + 1
    nodes = [*graph.nodes[:place], turn, *graph.nodes[place:]]
    made.input[1] = "outer"
    constants = {**graph.constants, "outer": sides(BATCH, -1, 40, 3)}
    graph = replace(graph, nodes=nodes, constants=read_by(nodes, constants))
    model = graph.model()
    assert pad_heads(model) == 0
    assert graph.distance(model) == 0


@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_unet_computes_the_same(batch: int, checkpoint: Path) -> None:
    unet = traced_unet(checkpoint, batch)
    model = unet.model
    plain, before, narrow = unet.run(), operators(model), narrow_heads(model)
    assert 0 < narrow < before["Softmax"]
    assert pad_heads(model) == narrow
    assert narrow_heads(model) == 0
    check(model)
    assert operators(model) - before == {"Pad": 4 * narrow, "Reshape": 8 * narrow}
    assert relative_l2(unet.run(), plain) < 1e-6


def narrow_heads(model: ir.Model) -> int:
    """How many products of attention have factors that are no multiple of a tile wide."""
    scores = [node.inputs[0].producer() for node in model.graph if node.op_type == "Softmax"]
    return sum(node.inputs[0].shape[-1] % 32 > 0 for node in scores)
