"""The OpenVINO backend, by the way that this machine's CPU takes: the plugin or its own package."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgediffusion as ed
from edgediffusion import cpu, engine_openvino, openvino_native, openvino_plugin
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.golden import check_graph, golden_inputs, read_tensors
from edgediffusion.manifest import GraphSpec

HAS_PLUGIN = openvino_plugin.is_installed() and openvino_plugin.serves_this_cpu()

installed = pytest.mark.skipif(
    not engine_openvino.is_installed(), reason="OpenVINO for this CPU is not installed"
)
with_plugin = pytest.mark.skipif(not HAS_PLUGIN, reason="the plugin serves other CPUs")
with_package = pytest.mark.skipif(
    HAS_PLUGIN or not openvino_native.is_installed(),
    reason="one process loads the plugin's OpenVINO or the package's, not both",
)


def unet_spec(bundle: ed.Bundle) -> GraphSpec:
    return bundle.graph("unet", size=(128, 128))


def open_unet(folder: Path, threads: int = 0) -> Engine:
    bundle = ed.Bundle.open(folder)
    options = EngineOptions(threads=threads)
    return open_engine(unet_spec(bundle), bundle.path, "openvino", options)


def unet_inputs(folder: Path) -> dict[str, Any]:
    bundle = ed.Bundle.open(folder)
    spec = unet_spec(bundle)
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    return golden_inputs(spec.golden[0], spec, tensors)


@pytest.fixture
def no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_openvino, "computes_bf16", lambda: False)


@installed
def test_every_graph_of_the_demo_runs_and_passes_its_gate(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    for component in bundle.manifest.components.values():
        tensors = read_tensors(bundle.file(component.golden))
        for graph in component.graphs:
            with open_engine(graph, bundle.path, "openvino") as engine:
                assert engine.device == "openvino"
                gate = bundle.gate(graph, engine.arithmetic)
                assert check_graph(engine, tensors) <= gate, graph.file


@installed
@pytest.mark.usefixtures("no_amx")
def test_without_amx_it_computes_in_fp32_and_not_in_bf16(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    with open_unet(demo) as engine:
        assert engine.arithmetic == "fp32"
        assert check_graph(engine, tensors) < 1e-5  # in bf16 it is 3e-3


@installed
def test_bf16_is_named_and_has_its_own_gate(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "avx512_bf16" not in cpu.read_cpu()[1]:
        pytest.skip("this CPU has no instruction for bf16")
    monkeypatch.setattr(engine_openvino, "computes_bf16", lambda: True)
    bundle = ed.Bundle.open(demo)
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    with open_unet(demo) as engine:
        assert engine.arithmetic == "bf16"
        gate = bundle.gate(engine.spec, engine.arithmetic)
        assert bundle.gate(engine.spec, "fp32") < check_graph(engine, tensors) <= gate


@installed
@pytest.mark.usefixtures("no_amx")
def test_outputs_are_the_callers_and_the_same_each_time(demo: Path) -> None:
    inputs = unet_inputs(demo)
    with open_unet(demo, threads=1) as engine:
        first = engine(**inputs)["out_sample"]
        kept = first.copy()
        engine(**inputs | {"sample": inputs["sample"] * 2})
        assert np.array_equal(first, kept)
        assert engine(**inputs)["out_sample"].tobytes() == kept.tobytes()
    with pytest.raises(ed.EngineError, match="is closed: open it again"):
        engine(**inputs)


@installed
def test_sessions_open_and_close_again_and_again(demo: Path) -> None:
    inputs = unet_inputs(demo)
    with open_unet(demo) as kept:
        want = kept(**inputs)["out_sample"]
        for _ in range(3):
            with open_unet(demo) as engine:
                assert np.array_equal(engine(**inputs)["out_sample"], want)
        assert np.array_equal(kept(**inputs)["out_sample"], want)


@installed
def test_two_pipelines_at_once_do_not_disturb_each_other(demo: Path) -> None:
    request = ed.Request(prompt="a red circle", steps=2, seed=7)
    made: list[bytes] = []

    def work() -> None:
        with ed.Pipeline.open(demo, device="openvino") as pipe:
            made.extend(pipe.generate(request).images.tobytes() for _ in range(2))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


@installed
@pytest.mark.usefixtures("no_amx")
def test_pictures_are_those_of_the_cpu_device(demo: Path) -> None:
    request = ed.Request(prompt="a red circle", steps=3, seed=7)
    pictures = []
    for device in ("cpu", "openvino"):
        with ed.Pipeline.open(demo, device=device) as pipe:
            result = pipe.generate(request)
        assert result.device == device
        pictures.append(result.images.astype(np.float64))
    assert np.abs(pictures[0] - pictures[1]).max() <= 2


@installed
@pytest.mark.parametrize("last", ["pass", "del engine", "engine.close()", "engine.me = engine"])
def test_the_process_ends_cleanly_whatever_is_still_open(demo: Path, last: str) -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import numpy as np
import edgediffusion as ed
from edgediffusion.engine import open_engine
bundle = ed.Bundle.open({str(demo)!r})
engine = open_engine(bundle.graph("text_encoder"), bundle.path, "openvino")
engine(**{{t.name: np.zeros(t.shape, t.dtype) for t in engine.spec.inputs}})
{last}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@installed
def test_opening_a_graph_leaves_the_hosts_floating_point_alone(demo: Path) -> None:
    with open_unet(demo) as engine:
        engine(**unet_inputs(demo))
        assert np.float64(5e-324) * np.float64(1.0) > 0


@installed
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE_VNNI"])
def test_on_an_emulated_lesser_cpu_it_computes_in_fp32(demo: Path, isa: str) -> None:
    code = f"""
import os, sys
os.environ["ONEDNN_MAX_CPU_ISA"] = {isa!r}
sys.path[:] = {sys.path!r}
import edgediffusion as ed
from edgediffusion.engine import open_engine, resolve_device
from edgediffusion.golden import check_graph, read_tensors
bundle = ed.Bundle.open({str(demo)!r})
tensors = read_tensors(bundle.file(bundle.manifest.components["text_encoder"].golden))
with open_engine(bundle.graph("text_encoder"), bundle.path, "openvino") as engine:
    assert check_graph(engine, tensors) < 1e-5
    print(engine.arithmetic, resolve_device("auto"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fp32 cpu\n", "")


@with_plugin
def test_a_plugin_that_the_host_registered_is_used_as_it_is() -> None:
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import onnxruntime, onnxruntime_ep_openvino
path = onnxruntime_ep_openvino.get_library_path()
onnxruntime.register_execution_provider_library("the host's", path)
before = len(onnxruntime.get_ep_devices())
from edgediffusion.openvino_plugin import cpu_device
cpu_device()
assert len(onnxruntime.get_ep_devices()) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def with_det(tmp_path: Path, demo: Path) -> tuple[GraphSpec, Path]:
    """A graph with an operator that OpenVINO does not have, and a spec of it."""
    value = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 8, 8]), ("w", [1, 4]))
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Det", ["y"], ["z"]),
        helper.make_node("Relu", ["z"], ["w"]),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 22)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "g.onnx")
    spec = unet_spec(ed.Bundle.open(demo))
    tensor = spec.inputs[0]
    return (
        msgspec.structs.replace(
            spec,
            file="g.onnx",
            bf16={},
            inputs=(msgspec.structs.replace(tensor, name="x", shape=(1, 4, 8, 8)),),
            outputs=(msgspec.structs.replace(tensor, name="w", shape=(1, 4)),),
        ),
        tmp_path,
    )


@with_plugin
def test_a_graph_that_is_not_taken_whole_is_an_error_that_names_the_operators(
    with_det: tuple[GraphSpec, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    spec, folder = with_det
    with pytest.raises(
        ed.EngineError, match=r"does not take all of the graph, Det \(1x\) would run .* device 'cp"
    ):
        open_engine(spec, folder, "openvino")
    assert capfd.readouterr().err == ""


@with_plugin
def test_a_graph_that_slips_through_is_found_by_its_assignment(
    with_det: tuple[GraphSpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = openvino_plugin.OpenVinoCompiler._open

    def lenient(self: Any, path: Path, entries: dict[str, str]) -> Any:
        return honest(self, path, {})

    monkeypatch.setattr(openvino_plugin.OpenVinoCompiler, "_open", lenient)
    with pytest.raises(ed.EngineError, match=r"Det \(1x\) would run on ONNX Runtime's CPU prov"):
        open_engine(with_det[0], with_det[1], "openvino")


@installed
def test_openvinos_own_words_are_passed_on(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine_openvino._HINTS, "fp32", "f31")
    monkeypatch.setitem(engine_openvino._HINTS, "bf16", "f31")
    with pytest.raises(ed.EngineError, match="does not load in OpenVINO: Wrong value f31"):
        open_unet(demo)


@installed
def test_a_graph_that_is_not_the_manifests_is_refused(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    other = msgspec.structs.replace(unet_spec(bundle), inputs=unet_spec(bundle).inputs[:2])
    with pytest.raises(ed.EngineError, match="is not the graph that the manifest describes"):
        open_engine(other, bundle.path, "openvino")


@installed
def test_the_versions_are_told() -> None:
    own = {"onnxruntime", "onnxruntime-ep-openvino"} if HAS_PLUGIN else {"openvino"}
    assert engine_openvino.libraries().keys() == own
    assert engine_openvino.describe().startswith("OpenVINO 20")


# --- the plugin -----------------------------------------------------------------------------------


@pytest.fixture
def intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the plugin is made for."""
    monkeypatch.setattr(openvino_plugin, "serves_this_cpu", lambda: True)


@pytest.mark.parametrize(
    ("system", "machine", "vendor", "serves"),
    [
        ("linux", "x86_64", 0x8086, True),
        ("win32", "AMD64", 0x8086, True),
        ("linux", "x86_64", 0x1022, False),
        ("linux", "aarch64", 0x8086, False),
        ("darwin", "arm64", 0x8086, False),
    ],
)
def test_the_plugin_serves_intels_cpus(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, vendor: int, serves: bool
) -> None:
    monkeypatch.setattr(openvino_plugin, "sys", SimpleNamespace(platform=system))
    monkeypatch.setattr(openvino_plugin, "platform", SimpleNamespace(machine=lambda: machine))
    kinds = openvino_plugin.ort.OrtHardwareDeviceType
    found = [SimpleNamespace(type=kinds.GPU, vendor_id=0x8086)] * (vendor != 0x8086)
    found.append(SimpleNamespace(type=kinds.CPU, vendor_id=vendor))
    devices = [SimpleNamespace(device=each) for each in found]
    monkeypatch.setattr(openvino_plugin.ort, "get_ep_devices", lambda: devices)
    assert openvino_plugin.serves_this_cpu() is serves
    assert engine_openvino.source() is (openvino_plugin if serves else openvino_native)


@pytest.mark.usefixtures("intel")
def test_a_missing_plugin_is_an_error_that_names_the_fix(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_plugin, "_PACKAGE", "no_such_plugin")
    with pytest.raises(ed.DeviceError, match=r'not installed: pip install "edge'):
        open_unet(demo)


Install = Callable[[Callable[[], str]], None]


@pytest.fixture
def fake_plugin(intel: None, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Let a function that returns a path stand in for the plugin's package."""

    def install(library_path: Callable[[], str]) -> None:
        monkeypatch.setattr(openvino_plugin, "is_installed", lambda: True)
        module = SimpleNamespace(get_library_path=library_path)
        monkeypatch.setitem(sys.modules, openvino_plugin._PACKAGE, module)

    return install


def test_a_plugin_without_its_library_is_named(demo: Path, fake_plugin: Install) -> None:
    def gone() -> str:
        raise FileNotFoundError("library not found at /x")

    fake_plugin(gone)
    with pytest.raises(ed.DeviceError, match=r"not found at /x: pip install .* --force-reinstall"):
        open_unet(demo)


def test_a_plugin_that_does_not_load_is_named(
    demo: Path, tmp_path: Path, fake_plugin: Install
) -> None:
    (tmp_path / "plugin.so").write_bytes(b"no library")
    fake_plugin(lambda: str(tmp_path / "plugin.so"))
    with pytest.raises(ed.DeviceError, match=r"the OpenVINO plugin does not load: .* device 'cpu'"):
        open_unet(demo)


def test_a_plugin_without_a_cpu_device_is_named(
    demo: Path, fake_plugin: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_plugin(lambda: "/nowhere/plugin.so")
    monkeypatch.setattr(openvino_plugin.ort, "register_execution_provider_library", lambda *_: None)
    with pytest.raises(ed.DeviceError, match="offers no CPU device on this machine"):
        open_unet(demo)


# --- OpenVINO's own package -----------------------------------------------------------------------


@pytest.fixture
def other_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that the plugin leaves out."""
    monkeypatch.setattr(openvino_plugin, "serves_this_cpu", lambda: False)
    openvino_native._core.cache_clear()


@pytest.mark.skipif(not openvino_native.is_installed(), reason="the package is not installed")
def test_the_package_computes_on_any_cpu_and_what_it_compiled_is_kept(
    demo: Path, tmp_path: Path
) -> None:
    code = f"""
import os, sys
os.environ["EDGEDIFFUSION_CACHE"] = {str(tmp_path)!r}
sys.path[:] = {sys.path!r}
import edgediffusion as ed
from edgediffusion import openvino_native, openvino_plugin
from edgediffusion.engine import open_engine
from edgediffusion.golden import check_graph, read_tensors
openvino_plugin.serves_this_cpu = lambda: False
compiled = []
honest = openvino_native.NativeCompiler.compile
openvino_native.NativeCompiler.compile = lambda *args: compiled.append(1) or honest(*args)
bundle = ed.Bundle.open({str(demo)!r})
tensors = read_tensors(bundle.file(bundle.manifest.components["text_encoder"].golden))
spec = bundle.graph("text_encoder")
for _ in range(2):
    with open_engine(spec, bundle.path, "openvino", content=bundle.content(spec)) as engine:
        assert check_graph(engine, tensors) <= bundle.gate(spec, engine.arithmetic)
print(len(compiled), "onnxruntime_ep_openvino" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1 False\n", "")


@with_package
def test_a_graph_that_the_package_does_not_take_is_an_error(
    with_det: tuple[GraphSpec, Path],
) -> None:
    with pytest.raises(ed.EngineError, match=r"g\.onnx does not load in OpenVINO: .*Det"):
        open_engine(with_det[0], with_det[1], "openvino")


@with_package
def test_what_was_compiled_and_does_not_load_is_an_error(tmp_path: Path) -> None:
    (tmp_path / openvino_native._FILE).write_bytes(b"no network" * 100)
    compiler = openvino_native.compiler("fp32", {})
    with pytest.raises(ed.EngineError, match="does not load in OpenVINO: "):
        compiler.load(tmp_path)


@pytest.mark.usefixtures("other_cpu")
def test_a_missing_package_is_an_error_that_names_the_fix(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_native, "_PACKAGE", "no_such_package")
    with pytest.raises(
        ed.DeviceError, match=r'Intel\'s: pip install "edgediffusion\[openvino-native'
    ):
        open_unet(demo)


@pytest.mark.usefixtures("other_cpu")
def test_a_package_that_does_not_load_is_named(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_openvino.py").write_text("raise ImportError('libx.so is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(openvino_native, "_PACKAGE", "broken_openvino")
    with pytest.raises(ed.DeviceError, match=r"does not load on .*: libx\.so is missing"):
        open_unet(demo)
