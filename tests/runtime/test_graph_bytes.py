from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import edgediffusion as ed
from edgediffusion.errors import EngineError
from edgediffusion.graph_bytes import GraphBytes, half_weights, read_graph_bytes


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes: list[Any], between: list[Any], weights: list[Any]) -> Path:
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, 100)], [value("y", 1, 100)], weights, value_info=between
    )
    onnx.save(helper.make_model(graph), path)
    return path


def weight(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
    made = TensorProto(name=name, data_type=kind, dims=shape)
    made.data_location = TensorProto.EXTERNAL
    return made


def test_weights_and_the_most_that_lives_at_one_time(tmp_path: Path) -> None:
    """x is alive until ``wide`` is there; ``wide`` until ``left`` and ``right`` are."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("Split", ["wide"], ["left", "right"]),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    between = [value("wide", 1, 1000), value("left", 1, 500), value("right", 1, 500)]
    path = save(tmp_path / "a.onnx", nodes, between, [weight("w", 100, 1000)])
    assert read_graph_bytes(path) == GraphBytes(weights=400_000, working=4 * (1000 + 1000))


def test_weights_in_half_count_as_what_they_are_cast_to_and_unused_ones_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [weight("half", 100, 100, kind=TensorProto.FLOAT16), weight("unused", 100, 100)]
    path = save(tmp_path / "a.onnx", nodes, [value("w", 100, 100)], weights)
    assert read_graph_bytes(path) == GraphBytes(weights=40_000, working=800)


def test_the_demo_says_all_of_its_sizes(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    for component in bundle.manifest.components.values():
        for graph in component.graphs:
            found = read_graph_bytes(bundle.file(graph.file))
            given = sum(4 * t.shape[0] for t in graph.inputs)
            assert found.weights <= 4 * component.parameters * 1.1
            assert found.working > given


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not say how much memory"),
        (b"no protobuf at all", "does not say how much memory"),
        (None, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_an_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=message):
        read_graph_bytes(path)


def test_a_graph_without_static_shapes_is_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    with pytest.raises(EngineError, match=r"\(h has no static shape\): export the bundle again"):
        read_graph_bytes(save(tmp_path / "a.onnx", nodes, [value("h", 1, "n")], []))
    with pytest.raises(EngineError, match=r"does not say how much memory it takes \('h'\)"):
        read_graph_bytes(save(tmp_path / "b.onnx", nodes, [], []))


def test_the_bytes_of_float16_weights(tmp_path: Path) -> None:
    weights = [weight("half", 10, 10, kind=TensorProto.FLOAT16), weight("whole", 5)]
    assert half_weights(save(tmp_path / "g.onnx", [], [], weights)) == 200
    assert half_weights(save(tmp_path / "g.onnx", [], [], weights[1:])) == 0


def test_a_file_that_cannot_be_read_has_no_float16_weights(tmp_path: Path) -> None:
    assert half_weights(tmp_path / "none.onnx") == 0
    (tmp_path / "odd.onnx").write_bytes(b"\x3a\xff\xff")
    assert half_weights(tmp_path / "odd.onnx") == 0
