from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgediffusion as ed
from edgediffusion.errors import ParityError, RequestError
from edgediffusion.golden import relative_l2
from edgediffusion.manifest import GraphSpec, Parity, TensorSpec
from edgediffusion_export import forms
from edgediffusion_export.splitting import block_attention, split

REQUEST = ed.Request(prompt="a red circle", steps=3, seed=7)


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], between: list[Any], weights: Any = ()
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
        value_info=between,
    )
    opset = [helper.make_opsetid("", 20)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opset, ir_version=10))


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)


def chain(widths: list[int]) -> ir.Model:
    """Linear layers of these widths, one after the other, with a skip from the first to the end."""
    nodes, between, weights = [], [], {}
    for i, (rows, columns) in enumerate(pairwise(widths)):
        weights[f"w{i}"] = np.random.default_rng(i).standard_normal((rows, columns), np.float32)
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], f"layer{i}"))
        between.append(value(f"x{i + 1}", 1, columns))
    end = len(widths) - 1
    nodes.append(helper.make_node("Add", [f"x{end}", "x1"], ["y"], "skip"))
    return model_of(
        nodes, [value("x0", 1, widths[0])], [value("y", 1, widths[-1])], between, weights
    )


def spec_of(model: ir.Model) -> GraphSpec:
    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(v.name, "float32", tuple(v.shape)) for v in values)

    return GraphSpec(
        file="unet/a.onnx",
        batch=1,
        precision="fp32",
        inputs=specs(model.graph.inputs),
        outputs=specs(model.graph.outputs),
        parity=Parity(0, 0, 0, 0),
        golden=(),
    )


def weights_of(model: ir.Model) -> int:
    return sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values())


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_parts_one_after_the_other_compute_what_the_whole_computes(count: int) -> None:
    model = chain([8] * 9)
    x = np.random.default_rng(0).standard_normal((1, 8), np.float32)
    parts = split(model, spec_of(model), count)
    values = {"x0": x}
    for part, graph in parts:
        given = {tensor.name: values[tensor.name] for tensor in part.inputs}
        made = run(graph, **given)
        values |= dict(zip((t.name for t in part.outputs), made, strict=True))
    assert len(parts) == count
    assert parts[0][0].file == "unet/a.part-1.onnx"
    np.testing.assert_array_equal(values["y"], run(model, x0=x)[0])


def test_each_part_has_its_share_of_the_weights_and_no_more() -> None:
    model = chain([8] * 9)
    parts = split(model, spec_of(model), 4)
    assert [weights_of(graph) for _, graph in parts] == [2 * 8 * 8 * 4] * 4
    assert sum(weights_of(graph) for _, graph in parts) == weights_of(model)


def test_a_cut_goes_where_little_crosses_it() -> None:
    """Of the places that are about as good for the weights, the one behind the narrow layer."""
    model = chain([64, 64, 64, 66, 4, 66, 64, 64, 64])
    first = split(model, spec_of(model), 2)[0][0]
    assert [tensor.name for tensor in first.outputs] == ["x1", "x4"]


def test_what_is_handed_over_is_described_with_its_shape() -> None:
    model = chain([8, 8, 8])
    first = split(model, spec_of(model), 2)[0][0]
    assert first.inputs == (TensorSpec("x0", "float32", (1, 8)),)
    assert first.outputs == (TensorSpec("x1", "float32", (1, 8)),)


def attention(rows: int = 64, keys: int = 64) -> ir.Model:
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], "scores"),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"], "mixed"),
    ]
    inputs = [value("q", 2, 4, rows, 8), value("k", 2, 4, 8, keys), value("v", 2, 4, keys, 8)]
    between = [value("s", 2, 4, rows, keys), value("p", 2, 4, rows, keys)]
    return model_of(nodes, inputs, [value("o", 2, 4, rows, 8)], between)


@pytest.mark.parametrize(("rows", "largest"), [(64, 1 << 15), (60, 1 << 14), (7, 1), (64, 1 << 12)])
def test_attention_in_blocks_is_exact_and_small(rows: int, largest: int) -> None:
    whole, blocked = attention(rows), attention(rows)
    assert block_attention(blocked.graph, largest) == 1
    draw = np.random.default_rng(0)
    feeds = {
        tensor.name: draw.standard_normal(tuple(tensor.shape), np.float32)
        for tensor in whole.graph.inputs
    }
    np.testing.assert_allclose(run(blocked, **feeds)[0], run(whole, **feeds)[0], atol=2e-6)
    softmax = [node.outputs[0] for node in blocked.graph if node.op_type == "Softmax"]
    per_row = 2 * 4 * 64 * 4
    assert len(softmax) > 1
    assert all(math.prod(v.shape) * 4 <= max(largest, per_row) for v in softmax)
    onnx.checker.check_model(ir.serde.serialize_model(blocked), full_check=True)


def test_small_attention_and_other_softmaxes_stay_as_they_are() -> None:
    assert block_attention(attention().graph) == 0
    nodes = [helper.make_node("Softmax", ["s"], ["p"], axis=-1)]
    alone = model_of(nodes, [value("s", 64, 64)], [value("p", 64, 64)], [])
    assert block_attention(alone.graph, 1) == 0


def test_a_bundle_in_parts_makes_the_same_picture(parts_bundle: Path) -> None:
    pictures = {}
    for residency in ("all", "one", "stream"):
        with ed.Pipeline.open(parts_bundle, device="cpu", residency=residency) as pipe:
            pictures[residency] = pipe.generate(REQUEST)
    whole = pictures["all"]
    assert pictures["one"].latents.tobytes() == whole.latents.tobytes()
    assert relative_l2(pictures["stream"].latents, whole.latents) < 1e-5


def test_verify_runs_the_parts_too(parts_bundle: Path) -> None:
    bundle = ed.Bundle.open(parts_bundle)
    checks = {check.subject: check for check in ed.verify(bundle, "cpu")}
    assert all(check.passed for check in checks.values())
    assert "unet/64x64.b2.onnx in 3 parts" in checks


def test_weights_that_are_stored_in_half_are_cast_in_the_part_that_uses_them(
    checkpoint: Path, tmp_path: Path, exporting: Callable[..., Path]
) -> None:
    bundle = exporting(checkpoint, tmp_path / "half", split=3, store="fp16", batches=(1,))
    (graph,) = ed.Bundle.open(bundle).manifest.components["unet"].graphs
    assert graph.parity.l2 < 1e-4
    for part in graph.parts:
        nodes = onnx.load(bundle / part.file, load_external_data=False).graph.node
        assert any(node.op_type == "Cast" for node in nodes)


def test_parts_that_compute_something_else_leave_no_bundle(
    checkpoint: Path,
    tmp_path: Path,
    exporting: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoilt(*given: Any) -> Any:
        parts = split(*given)
        next(node for node in parts[-1][1].graph if node.op_type == "Add").op_type = "Sub"
        return parts

    monkeypatch.setattr(forms, "split", spoilt)
    with pytest.raises(ParityError, match="differs from PyTorch's float32"):
        exporting(checkpoint, tmp_path / "b", split=2, batches=(1,))
    assert not (tmp_path / "b").exists()


def test_a_tile_must_be_made_of_latents_and_fit(
    checkpoint: Path, tmp_path: Path, exporting: Callable[..., Path]
) -> None:
    with pytest.raises(RequestError, match=r"decoder tile 30x32: .* multiples of 8 pixels"):
        exporting(checkpoint, tmp_path / "b", decoder_tiles=((30, 32),))
    with pytest.raises(RequestError, match="decoder tile 128x64 is larger than the size 64x64"):
        exporting(checkpoint, tmp_path / "b", decoder_tiles=((128, 64),))
