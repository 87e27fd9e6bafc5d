from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

import edgediffusion as ed
from edgediffusion import engine_ort
from edgediffusion.engine import Engine, EngineOptions, open_engine, resolve_device
from edgediffusion.golden import golden_inputs, read_tensors, relative_l2
from edgediffusion.machine import resident_memory_mib
from edgediffusion.manifest import GraphSpec, Parity, TensorSpec


def open_unet(demo: Path) -> Engine:
    bundle = ed.Bundle.open(demo)
    return open_engine(bundle.graph("unet", size=(128, 128)), bundle.path)


def test_a_graph_computes_and_frees_its_memory(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    spec = bundle.graph("unet", size=(128, 128))
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    inputs = golden_inputs(spec.golden[0], spec, tensors)
    with open_engine(spec, bundle.path) as engine:
        first = engine(**inputs)["out_sample"]
        kept = first.copy()
        engine(**inputs | {"sample": inputs["sample"] * 2})
        assert np.array_equal(first, kept), "outputs belong to the caller"
    with pytest.raises(ed.EngineError, match="is closed: open it again"):
        engine(**inputs)
    engine.close()


def test_all_wrong_inputs_are_reported_at_once(demo: Path) -> None:
    with open_unet(demo) as engine, pytest.raises(ed.EngineError, match="wrong inputs") as caught:
        engine(
            sample=np.zeros((2, 4, 12, 12), np.float32),
            timestep=np.zeros(1, np.float64),
            smaple=np.zeros(1, np.float32),
        )
    message = str(caught.value)
    assert "sample: got float32 (2, 4, 12, 12), graph takes float32 (1, 4, 16, 16)" in message
    assert "timestep: got float64 (1,), graph takes float32 (1,)" in message
    assert "encoder_hidden_states: is missing, graph takes float32" in message
    assert "smaple: unknown, graph takes sample, timestep, encoder_hidden_states" in message


def test_a_graph_that_is_not_the_manifests_is_refused(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    spec = bundle.graph("unet", size=(128, 128))
    other = msgspec.structs.replace(spec, inputs=spec.inputs[:2])
    with pytest.raises(ed.EngineError, match="is not the graph that the manifest describes"):
        open_engine(other, bundle.path)


def test_a_graph_that_onnx_runtime_refuses(copied: Path) -> None:
    bundle = ed.Bundle.open(copied)
    (copied / "unet" / "weights.safetensors").unlink()
    with pytest.raises(ed.EngineError, match="does not load in ONNX Runtime"):
        open_engine(bundle.graph("unet", size=(128, 128)), bundle.path)


def test_a_failing_run_is_an_engine_error(demo: Path) -> None:
    class Failing:
        def run(self, *_: object) -> None:
            raise RuntimeError("out of memory\nwith a long trace")

    with open_unet(demo) as engine:
        assert engine._backend is not None
        engine._backend._session = Failing()  # type: ignore[attr-defined]
        inputs = {t.name: np.zeros(t.shape, t.dtype) for t in engine.spec.inputs}
        with pytest.raises(ed.EngineError, match=r"failed in ONNX Runtime: out of memory$"):
            engine(**inputs)


@pytest.fixture
def wide(tmp_path: Path) -> GraphSpec:
    """A graph that works in 256 MiB, between an input and an output of 4 bytes.

    A pool keeps the first block that it took, so that is a small one here, as in a real graph.
    """
    nodes = [
        helper.make_node("Sqrt", ["x"], ["root"]),
        helper.make_node("Expand", ["root", "shape"], ["many"]),
        helper.make_node("Sqrt", ["many"], ["roots"]),
        helper.make_node("ReduceMax", ["roots"], ["y"], keepdims=0),
    ]
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    found = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [])
    shape = helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [64 << 20])
    graph = helper.make_graph(nodes, "wide", [given], [found], [shape])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "w.onnx")
    return GraphSpec(
        file="w.onnx",
        batch=1,
        precision="fp32",
        inputs=(TensorSpec("x", "float32", (1,)),),
        outputs=(TensorSpec("y", "float32", ()),),
        parity=Parity(0, 0, 0, 0),
        golden=(),
    )


def resident_mib() -> float:
    return resident_memory_mib() or 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("lean", [False, True])
def test_an_engine_at_rest_holds_nothing_that_only_runs_need(
    wide: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lean: bool
) -> None:
    monkeypatch.setattr(engine_ort, "_RESTS_AFTER_S", 0.0)
    with open_engine(wide, tmp_path, options=EngineOptions(lean=lean)) as engine:
        before = resident_mib()
        assert engine(x=np.full(1, 81, np.float32)) == {"y": 3}
        engine.rest()
        assert resident_mib() - before < 50
        engine.rest()
        assert engine(x=np.full(1, 16, np.float32)) == {"y": 2}
    engine.rest()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_pool_stays_after_short_runs_and_does_not_grow(
    wide: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_ort, "_RESTS_AFTER_S", 1e9)
    with open_engine(wide, tmp_path) as engine:
        before = resident_mib()
        engine(x=np.ones(1, np.float32))
        pool = resident_mib() - before
        assert pool > 200
        engine.rest()
        engine(x=np.ones(1, np.float32))
        assert abs(resident_mib() - before - pool) < 50


def test_opening_a_graph_leaves_the_hosts_floating_point_alone(demo: Path) -> None:
    with open_unet(demo) as engine:
        engine(**{t.name: np.zeros(t.shape, t.dtype) for t in engine.spec.inputs})
        assert np.float64(5e-324) * np.float64(1.0) > 0


@pytest.mark.parametrize("fast", [True, False])
def test_int8_kernels_are_exact_where_the_cpu_has_no_dot_products(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(engine_ort, "computes_int8", lambda: fast)
    options = engine_ort.session_options(EngineOptions())
    if fast:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            options.get_session_config_entry("session.x64quantprecision")
    else:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"


def test_auto_is_a_device_that_runs_here() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"


def test_relative_l2_of_known_vectors() -> None:
    want = np.array([3.0, 4.0], np.float32)
    assert relative_l2(want, want) == 0
    assert relative_l2(np.array([3.0, 4.5], np.float32), want) == pytest.approx(0.1)
    assert relative_l2(np.array([np.nan, 4.0], np.float32), want) == float("inf")
    assert relative_l2(np.ones(2, np.float32), np.zeros(2, np.float32)) == float("inf")
    assert relative_l2(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0


def test_a_damaged_golden_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_bytes(b"junk")
    with pytest.raises(ed.IntegrityError, match="is not a readable safetensors file"):
        read_tensors(tmp_path / "g.safetensors")
