from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgediffusion as ed
from edgediffusion.manifest import GATES, Manifest
from edgediffusion.manifest_file import read_manifest
from tests.export.quantize.reading import operators


@pytest.fixture(scope="module")
def manifest(dynamic_bundle: Path) -> Manifest:
    return read_manifest(dynamic_bundle)


def test_only_the_unet_is_int8_and_the_format_says_so(manifest: Manifest) -> None:
    assert (manifest.format, manifest.precision, manifest.store) == (2, "int8", "fp32")
    for name, component in manifest.components.items():
        wanted = "int8" if name == "unet" else "fp32"
        assert {graph.precision for graph in component.graphs} == {wanted}
    assert {t.dtype for graph in manifest.components["unet"].graphs for t in graph.inputs} == {
        "float32"
    }


def test_every_linear_multiplies_integers(dynamic_bundle: Path, tiny_bundle: Path) -> None:
    float_graph = operators(tiny_bundle, "unet/64x64.b2.onnx")
    graph = operators(dynamic_bundle, "unet/64x64.b2.onnx")
    blocks = graph["Softmax"] // 2  # each transformer block attends to itself and to the text
    linears = blocks * (2 * 4 + 2)
    assert graph["MatMulInteger"] == linears > 0
    assert float_graph["MatMul"] - graph["MatMul"] == linears
    assert graph["Conv"] == float_graph["Conv"]
    assert graph["DynamicQuantizeLinear"] == blocks * 6 + 1, "shared by q, k, v, and by the text"


def test_weights_are_int8_on_disk_and_say_where_they_come_from(
    dynamic_bundle: Path, manifest: Manifest
) -> None:
    stored = load_file(dynamic_bundle / "unet" / "weights.safetensors")
    tensors = manifest.components["unet"].tensors
    small = {name for name, array in stored.items() if array.dtype == np.int8}
    assert small == {name for name in tensors if ".attn" in name or ".ff." in name} - {
        name for name in tensors if name.endswith("bias")
    }
    peaks = {int(np.abs(stored[name].astype(int)).max()) for name in small}
    assert peaks == {63}, "a reduced range"
    assert "7-bit weights, int8" in str(manifest.components["unet"].graphs[0].note)
    for name in small:
        assert tensors[name].source == name
        assert tensors[name].transforms == ("transpose", "quantize:int8")


def test_the_gate_is_what_was_measured(dynamic_bundle: Path, manifest: Manifest) -> None:
    graphs = manifest.components["unet"].graphs
    for graph in graphs:
        assert 1e-4 < graph.parity.l2 < graph.parity.gate < 0.05
        assert graph.parity.gate == pytest.approx(1.5 * graph.parity.l2, rel=0.01)
    assert manifest.gates == {**GATES, "int8": max(graph.parity.gate for graph in graphs)}
    checks = [check for check in ed.verify(ed.Bundle.open(dynamic_bundle), "cpu")]
    assert all(check.passed for check in checks)
    assert any("cpu in int8" in check.detail for check in checks)


def test_pictures_come_out_through_the_cache(dynamic_bundle: Path) -> None:
    request = ed.Request(prompt="a red circle", steps=2, seed=1)
    with ed.Pipeline.open(dynamic_bundle, device="cpu") as pipe:
        first = pipe.generate(request)
    with ed.Pipeline.open(dynamic_bundle, device="cpu") as pipe:
        second = pipe.generate(request)
    assert first.arithmetic == "fp32+int8"
    assert np.array_equal(first.images, second.images)
