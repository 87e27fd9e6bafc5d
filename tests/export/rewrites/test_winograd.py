from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from edgediffusion_export.rewrites import rewrite, winograd
from edgediffusion_export.rewrites.winograd import BALANCED, LARGE, SMALL, Filtering, TileAreas
from tests.export.rewrites.small import Small, draw, operators

INS, OUTS, BATCH = 12, 20, 2
AREAS = TileAreas(small=16, large=100)


def convolution(height: int, width: int, *, bias: bool = True, **attributes: Any) -> Small:
    """y = conv(x), of maps that keep their size."""
    weights = ["w", "b"] if bias else ["w"]
    taps = draw(OUTS, INS // attributes.get("group", 1), 3, 3) / 10
    return Small(
        [
            helper.make_node("Conv", ["x", *weights], ["c"], **{"pads": [1] * 4} | attributes),
            helper.make_node("Relu", ["c"], ["y"]),
        ],
        {"x": (BATCH, INS, height, width)},
        (BATCH, OUTS, height, width),
        {"w": taps, "b": draw(OUTS, seed=1)},
    )


def upsampled(height: int, width: int, **attributes: Any) -> Small:
    """y = conv(upsample(x)), of maps that end as large as said."""
    plain = convolution(height, width)
    exact = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resize = helper.make_node("Resize", ["x", "", "twice"], ["u"], **exact | attributes)
    plain.nodes[0].input[0] = "u"
    return Small(
        [resize, *plain.nodes],
        {"x": (BATCH, INS, height // 2, width // 2)},
        plain.output,
        {**plain.constants, "twice": np.array([1, 1, 2, 2], np.float32)},
    )


@pytest.fixture(autouse=True)
def _few_channels_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", INS)


def positions(model: Any) -> int:
    """In how many positions of a tile products are summed."""
    (product, *_) = (node for node in model.graph if node.op_type == "MatMul")
    taps = product.inputs[0].producer().inputs[1]
    return int(taps.shape[0])


@pytest.mark.parametrize(
    ("graph", "count"),
    [
        (convolution(8, 16), 36),
        (convolution(12, 12, bias=False), 36),
        (convolution(8, 8), 16),
        (convolution(10, 14), 16),
        (upsampled(8, 16), 25),
        (upsampled(8, 8), 9),
        (upsampled(10, 14), 9),
    ],
)
def test_the_rewritten_graph_computes_the_same(graph: Small, count: int) -> None:
    model = graph.model()
    assert rewrite(model, ["winograd"], AREAS) == {"winograd": 1}
    assert operators(model)["Resize"] == 0
    assert positions(model) == count
    assert graph.distance(model) < 5e-6


@pytest.mark.parametrize("make", [convolution, upsampled])
@pytest.mark.parametrize("strips", [2, 4])
def test_large_maps_are_cut_into_strips(
    make: Any, strips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make(16, 8)
    model = graph.model()
    count = 25 if make is upsampled else 36
    whole = count * OUTS * BATCH * (16 // 4) * (8 // 4) * 4
    monkeypatch.setattr(winograd, "STRIP_BYTES", whole // strips)
    assert rewrite(model, ["winograd"], AREAS) == {"winograd": 1}
    assert operators(model)["DepthToSpace"] == operators(model)["Slice"] == strips
    assert graph.distance(model) < 5e-6


@pytest.mark.parametrize(
    "graph",
    [
        convolution(9, 16),
        convolution(2, 4),
        convolution(8, 16, group=2),
        convolution(8, 16, pads=[2] * 4, dilations=[2, 2]),
    ],
    ids=["odd", "small map", "groups", "dilated"],
)
def test_other_convolutions_stay(graph: Small) -> None:
    model = graph.model()
    assert rewrite(model, ["winograd"], AREAS) == {}
    assert operators(model)["Conv"] == 1


def test_weights_kept_as_halves_are_filtered_too() -> None:
    graph = convolution(8, 16)
    halves = {"half": graph.constants["w"].astype(np.float16), "b": graph.constants["b"]}
    cast = helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT)
    graph = Small([cast, *graph.nodes], graph.inputs, graph.output, halves)
    model = graph.model()
    assert rewrite(model, ["winograd"], AREAS) == {"winograd": 1}
    assert graph.distance(model) < 5e-6


def test_weights_that_are_computed_stay() -> None:
    graph = convolution(8, 16)
    double = helper.make_node("Add", ["half", "half"], ["w"])
    halves = {"half": graph.constants["w"] / 2, "b": graph.constants["b"]}
    model = Small([double, *graph.nodes], graph.inputs, graph.output, halves).model()
    assert rewrite(model, ["winograd"], AREAS) == {}


def test_few_channels_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", INS + 1)
    assert rewrite(convolution(8, 16).model(), ["winograd"], AREAS) == {}


def test_an_upsample_of_another_kind_is_left_in_front() -> None:
    graph = upsampled(8, 16, mode="linear")
    model = graph.model()
    assert rewrite(model, ["winograd"], AREAS) == {"winograd": 1}
    assert (operators(model)["Resize"], positions(model)) == (1, 36)
    assert graph.distance(model) < 5e-6


def test_nothing_is_done_unasked() -> None:
    graph = convolution(8, 16)
    model = graph.model()
    assert rewrite(model, []) == {}
    assert graph.distance(model) == 0


@pytest.mark.parametrize("form", [SMALL, LARGE, BALANCED])
def test_the_matrices_filter_a_row(form: Filtering) -> None:
    """In one dimension: outputs @ ((taps @ g) * (inputs @ d)) is the correlation of d with g."""
    taps, row = draw(3).astype(float), draw(form.tile + 2, seed=1).astype(float)
    got = form.outputs @ ((form.taps @ taps) * (form.inputs @ row))
    np.testing.assert_allclose(got, np.correlate(row, taps, "valid"), rtol=1e-12)
    twice = form.upsampled()
    small = draw(form.tile // 2 + 2, seed=2).astype(float)
    got = twice.outputs @ ((twice.taps @ taps) * (twice.inputs @ small))
    want = np.correlate(np.repeat(small, 2)[1:-1], taps, "valid")
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_points_that_lavin_and_gray_print() -> None:
    assert LARGE.inputs[0].tolist() == [4, 0, -5, 0, 1, 0]
    assert LARGE.inputs[3].tolist() == [0, -2, -1, 2, 1, 0]
    np.testing.assert_allclose(LARGE.taps[3], [1 / 24, 1 / 12, 1 / 6])
    assert LARGE.outputs[3].tolist() == [0, 1, -1, 8, -8, 1]
    assert SMALL.taps[1].tolist() == [0.5, 0.5, 0.5]


def to_bf16(array: Any) -> Any:
    """Round as bf16 does: to 8 bits, half to even."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_balanced_points_lose_half_where_bf16_rounds() -> None:
    draws = np.random.default_rng(0)
    tiles = to_bf16(draws.standard_normal((40, 64, 6, 6)))
    taps = draws.standard_normal((16, 64, 3, 3)).astype(np.float32)
    patches = np.lib.stride_tricks.sliding_window_view(tiles, (3, 3), (2, 3))
    want = np.einsum("tcxyij,kcij->tkxy", patches, taps, optimize=True)

    def loss(form: Filtering) -> float:
        kernels = to_bf16(np.einsum("ai,bj->abij", form.inputs, form.inputs))
        columns = to_bf16(np.einsum("abij,tcij->abtc", kernels, tiles, optimize=True))
        weights = to_bf16(np.einsum("ai,kcij,bj->abck", form.taps, taps, form.taps, optimize=True))
        summed = to_bf16(columns @ weights)
        back = np.einsum("ia,abtk,jb->tkij", form.outputs, summed, form.outputs, optimize=True)
        return float(np.linalg.norm(back - want) / np.linalg.norm(want))

    assert loss(BALANCED) < 0.6 * loss(LARGE)


@pytest.mark.parametrize(
    ("graph", "count"),
    [(convolution(8, 16), 36), (convolution(8, 8), 16), (upsampled(8, 16), 9)],
)
def test_products_in_bf16_are_typed_so(graph: Small, count: int) -> None:
    model = graph.model()
    assert rewrite(model, ["winograd"], AREAS, halves=True) == {"winograd": 1}
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    (product, *_) = (node for node in model.graph if node.op_type == "MatMul")
    assert {value.dtype for value in product.inputs} == {ir.DataType.BFLOAT16}
    assert product.outputs[0].dtype == ir.DataType.BFLOAT16
    assert product.inputs[0].producer().inputs[0].producer().inputs[1].shape[0] == count
