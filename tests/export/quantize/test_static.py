from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import edgediffusion as ed
from edgediffusion.engine import open_engine
from edgediffusion.engine_openvino import is_installed
from edgediffusion.golden import check_graph, read_tensors
from edgediffusion.manifest import Manifest
from edgediffusion.manifest_file import read_manifest
from tests.export.quantize.reading import operators


@pytest.fixture(scope="module")
def manifest(static_bundle: Path) -> Manifest:
    return read_manifest(static_bundle)


@pytest.fixture(scope="module")
def layers(static_bundle: Path) -> dict[str, Any]:
    report = json.loads((static_bundle / "unet" / "int8.json").read_text(encoding="utf-8"))
    return {layer["name"]: layer for layer in report["layers"]}


def test_each_layer_of_the_report_is_in_the_graph_as_it_says(
    static_bundle: Path, layers: dict[str, Any]
) -> None:
    model = onnx.load(static_bundle / "unet" / "64x64.b2.onnx", load_external_data=False)
    int8 = {name for name, layer in layers.items() if layer["int8"]}
    types = {each.name: each.data_type for each in model.graph.initializer}
    weights = {n.removesuffix(".weight") for n, t in types.items() if t == onnx.TensorProto.INT8}
    assert {name for name in weights if not name.endswith("zeros.int8")} == int8
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            weight = makers.get(node.input[1])
            if weight is not None and weight.op_type == "DequantizeLinear":
                assert makers[node.input[0]].op_type == "DequantizeLinear"


def test_the_layers_that_cost_most_stay_float(layers: dict[str, Any]) -> None:
    kept = [layer for layer in layers.values() if not layer["int8"]]
    small = [layer for layer in layers.values() if layer["int8"]]
    assert sum(layer["share"] for layer in kept) <= 0.1 < sum(layer["share"] for layer in small)
    assert sum(layer["share"] for layer in layers.values()) == pytest.approx(1)
    assert {"conv_in", "conv_out"} <= {layer["name"] for layer in kept}
    price = [layer["error"] ** 2 / layer["share"] for layer in kept]
    assert max(price) > max(layer["error"] ** 2 / layer["share"] for layer in small)
    assert not any("time_emb" in name for name in layers), "their one row of input costs nothing"


def test_convolutions_and_linears_run_as_integers(static_bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime fuses what it can; what it leaves apart would run in float."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    file = static_bundle / "unet" / "64x64.b2.onnx"
    ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    made = operators(tmp_path, "optimised.onnx")
    asked = operators(static_bundle, "unet/64x64.b2.onnx")
    convs = asked["Conv"] - made["Conv"] - made["FusedConv"]
    assert made["QLinearConv"] == convs > 0
    assert made["MatMulIntegerToFloat"] > 0
    weights = load_file(static_bundle / "unet" / "weights.safetensors")
    int8 = sum(array.dtype == np.int8 for array in weights.values())
    assert made["QLinearConv"] + made["MatMulIntegerToFloat"] == int8


def test_the_graphs_share_int8_weights_that_say_where_they_come_from(
    static_bundle: Path, tiny_bundle: Path, manifest: Manifest
) -> None:
    tensors = manifest.components["unet"].tensors
    stored = load_file(static_bundle / "unet" / "weights.safetensors")
    assert (
        max(int(np.abs(a.astype(int)).max()) for a in stored.values() if a.dtype == np.int8) == 127
    )
    for name, array in stored.items():
        done = tensors[name].transforms
        assert (array.dtype == np.int8) == ("quantize:int8" in done), name
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert tensors[f"{block}.norm1.weight"].transforms == ("smooth",)
    assert tensors[f"{block}.attn1.to_q.weight"].transforms == (
        "smooth",
        "transpose",
        "quantize:int8",
    )
    plain = (tiny_bundle / "unet" / "weights.safetensors").stat().st_size
    assert (static_bundle / "unet" / "weights.safetensors").stat().st_size < plain / 2


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_every_graph_is_within_its_measured_gate(
    static_bundle: Path, manifest: Manifest, device: str
) -> None:
    if device == "openvino" and not is_installed():
        pytest.skip("needs the OpenVINO plugin")
    bundle = ed.Bundle.open(static_bundle)
    component = manifest.components["unet"]
    tensors = read_tensors(bundle.file(component.golden))
    assert {graph.variant for graph in component.graphs} == {"plain", "deep", "shallow"}
    for graph in component.graphs:
        with open_engine(graph, bundle.path, device) as engine:
            assert engine.arithmetic == "int8"
            error = check_graph(engine, tensors)
        assert 1e-4 < error <= bundle.gate(graph, "int8") < 0.15
        assert graph.note is not None
        assert "see unet/int8.json" in graph.note


def test_auto_takes_the_cpu_and_says_why(static_bundle: Path) -> None:
    with ed.Pipeline.open(static_bundle, device="auto") as pipe:
        result = pipe.generate(ed.Request(prompt="a red circle", steps=2, seed=1))
    assert (result.device, result.arithmetic) == ("cpu", "fp32+int8")
    assert "it computes int8 bundles" in result.device_reason
