"""Plans of TensorRT for RTX, built by the real library, which needs no GPU for that."""

from __future__ import annotations

import _thread
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import edgediffusion as ed
from edgediffusion.errors import DeviceError, EngineError, RequestError
from edgediffusion.manifest import STAYS_FP32, GraphSpec
from edgediffusion.tensorrt_build import build_plan, compute_capabilities, parse
from edgediffusion.tensorrt_library import TENSORRT_RTX, message_log
from edgediffusion_export import plans
from edgediffusion_export.bundle import Staging
from edgediffusion_export.graphs import NETWORKS, graph_specs
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.options import ExportOptions
from edgediffusion_export.plans import plan_groups, write_plans
from edgediffusion_export.source import open_checkpoint
from tests.bundles import export_tiny

installed = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="the extra tensorrt-rtx is not installed",
)
SHAPES = Path(__file__).parents[2] / "models" / "shapes" / "checkpoint"
KINDS = 32
"""Where the header of a plan says which kinds of GPU it is for, one bit each, 7.5 the lowest."""


def options(*capabilities: str, **more: Any) -> ExportOptions:
    asked: dict[str, Any] = {"precision": "fp16", "targets": ("tensorrt-rtx",)} | more
    return ExportOptions(
        checkpoint="c", output=Path("b"), compute_capabilities=capabilities, **asked
    )


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ed.Bundle:
    """The tiny checkpoint with a UNet for guidance, for one kind of GPU."""
    folder = export_tiny(
        checkpoint,
        tmp_path_factory.mktemp("plans") / "tiny",
        precision="fp16",
        batches=(2,),
        targets=("cpu", "tensorrt-rtx"),
        compute_capabilities=("8.9",),
    )
    return ed.Bundle.open(folder)


def unet(bundle: ed.Bundle) -> GraphSpec:
    return bundle.graph("unet", batch=2, size=(64, 64))


@installed
def test_every_graph_has_its_plans_and_the_manifest_lists_them(bundle: ed.Bundle) -> None:
    version = TENSORRT_RTX.load().__version__
    graphs = [g for c in bundle.manifest.components.values() for g in c.graphs]
    assert len(graphs) == 6
    for graph in graphs:
        (plan,) = graph.plans
        assert (plan.version, plan.compute_capabilities) == (version, ("8.9",))
        assert plan.file == graph.file.removesuffix(".onnx") + ".rtx-8.9.plan"
        assert bundle.manifest.files[plan.file].size == bundle.file(plan.file).stat().st_size
    assert bundle.manifest.tools["tensorrt-rtx"] == version


@installed
def test_a_plan_is_for_the_kinds_of_gpu_that_were_asked_for(bundle: ed.Bundle) -> None:
    spec = unet(bundle)
    one = bundle.file(spec.plans[0].file).read_bytes()
    assert one[KINDS] == 0b1000
    several = build_plan(
        TENSORRT_RTX.load(), bundle.file(spec.file), capabilities=("8.6", "8.9", "12.0")
    )
    assert several.data[KINDS] == 0b11100
    assert several.data.nbytes < 1.1 * len(one)


@installed
def test_the_demos_own_unet_builds_and_its_plan_is_what_was_asked_for(tmp_path: Path) -> None:
    """models/shapes at its own size and guidance batch; no golden vectors, no other network."""
    source = open_checkpoint(str(SHAPES), None)
    network = next(each for each in NETWORKS if each.name == "unet")
    (spec, *_) = graph_specs(network, source.architecture, [(128, 128)], [2], "fp16")
    assert spec.file == "unet/128x128.b2.onnx"
    (tmp_path / "unet").mkdir()
    model = export_graph(network, spec, source.load(network.part).half())
    ir.save(model, tmp_path / spec.file, external_data="weights.data")
    (listed,) = write_plans(spec, Staging(tmp_path), [("8.6", "8.9")]).plans
    assert listed.file == "unet/128x128.b2.rtx-8.6-8.9.plan"
    plan = (tmp_path / listed.file).read_bytes()
    assert plan[KINDS] == 0b1100
    weights = (tmp_path / "unet" / "weights.data").stat().st_size
    assert weights > 7 << 20
    assert weights < len(plan) < 2 * weights
    trt = TENSORRT_RTX.load()
    runtime = trt.Runtime(message_log(trt))
    _, faults = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    bits = trt.EngineInvalidityDiagnostics
    assert not faults & (int(bits.MALFORMED_ENGINE) | int(bits.VERSION_MISMATCH))


@installed
def test_the_network_is_the_graph_in_fp16_with_the_names_of_its_weights(bundle: ed.Bundle) -> None:
    """What a plan holds can be read on a GPU only; this is the network that it is built of."""
    trt = TENSORRT_RTX.load()
    spec, log = unet(bundle), message_log(TENSORRT_RTX.load())
    network, _parser = parse(trt, trt.Builder(log), bundle.file(spec.file), log)
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    got = [(each.name, trt.nptype(each.dtype).__name__, tuple(each.shape)) for each in found]
    assert got == [(each.name, each.dtype, each.shape) for each in (*spec.inputs, *spec.outputs)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    assert convolutions
    assert all(layer.get_output(0).dtype == trt.float16 for layer in convolutions)
    tensors = bundle.manifest.components["unet"].tensors
    stored = [name for name in tensors if "conv1.weight" in name or "to_out.0.bias" in name]
    assert stored
    assert all(network.mark_weights_refittable(name) for name in stored)


@installed
def test_a_bundle_with_plans_is_a_bundle_like_any_other(bundle: ed.Bundle) -> None:
    checks = list(ed.verify(bundle, "cpu"))
    assert all(check.passed for check in checks), checks
    assert sum(check.subject.endswith(".plan") for check in checks) == 6
    assert not any(bundle.path.parent.glob(".*"))


@installed
def test_a_kind_of_gpu_that_the_library_does_not_know_is_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    message = (
        r"builds nothing for compute capability '9.0', only for 7.5, 8.0, .* such a GPU runs the "
        "bundle with device 'tensorrt' or 'cuda'"
    )
    with pytest.raises(RequestError, match=message):
        export_tiny(
            checkpoint,
            tmp_path / "b",
            precision="fp16",
            targets=("tensorrt-rtx",),
            compute_capabilities=("8.9", "9.0"),
        )
    assert list(tmp_path.iterdir()) == []


@installed
def test_the_usual_kinds_of_gpu_are_known() -> None:
    known = compute_capabilities(TENSORRT_RTX.load())
    assert {"7.5", *plans.DEFAULT_CAPABILITIES} <= set(known)


@installed
def test_a_file_that_is_no_graph_is_refused_in_the_librarys_own_words(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 4]) for name in "xy"]
    node = helper.make_node("NoSuchThing", ["x"], ["y"])
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "g.onnx")
    message = r"g\.onnx is not a graph that tensorrt_rtx .* reads: .*NoSuchThing"
    with pytest.raises(EngineError, match=message):
        build_plan(TENSORRT_RTX.load(), tmp_path / "g.onnx")


@installed
def test_a_build_that_fails_says_why(bundle: ed.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights from outside need a GPU at the build: the reason for one copy in each plan."""
    trt = TENSORRT_RTX.load()
    clear = trt.IBuilderConfig.clear_flag

    def refittable(config: Any, flag: Any) -> None:
        clear(config, flag)
        config.set_flag(trt.BuilderFlag.REFIT)

    monkeypatch.setattr(trt.IBuilderConfig, "clear_flag", refittable)
    with pytest.raises(EngineError, match=r"does not build in tensorrt_rtx: .*CUDA"):
        build_plan(trt, bundle.file(unet(bundle).file), capabilities=("8.9",))


@installed
def test_ctrl_c_stops_a_build(bundle: ed.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = TENSORRT_RTX.load()
    build = trt.Builder.build_serialized_network

    def interrupted(*arguments: Any) -> None:
        _thread.interrupt_main()
        assert build(*arguments) is None, "the build went on to its end"

    monkeypatch.setattr(trt.Builder, "build_serialized_network", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_plan(trt, bundle.file(unet(bundle).file), capabilities=("8.9",))


@installed
def test_an_export_whose_build_is_stopped_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plans, "build_plan", stop)
    with pytest.raises(KeyboardInterrupt):
        export_tiny(checkpoint, tmp_path / "b", precision="fp16", targets=("tensorrt-rtx",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "groups"),
    [
        ((), [("8.0", "8.6", "8.9", "12.0")]),
        (("12.0", "8.9", "8.9"), [("8.9", "12.0")]),
        (("8.6", "7.5"), [("7.5",), ("8.6",)]),
        (("7.5",), [("7.5",)]),
    ],
)
def test_turing_has_a_plan_of_its_own(asked: tuple[str, ...], groups: list[Any]) -> None:
    assert plan_groups(options(*asked)) == groups


def test_without_the_target_there_are_no_plans(tiny_bundle: Path) -> None:
    assert plan_groups(options(targets=("cpu",))) == []
    manifest = ed.Bundle.open(tiny_bundle).manifest
    assert all(g.plans == () for c in manifest.components.values() for g in c.graphs)
    assert "tensorrt-rtx" not in manifest.tools


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"precision": "fp32"}, "computes in fp16, got precision 'fp32': add --precision fp16"),
        ({"targets": ("cpu",)}, "are for engines that are built at export: add --target"),
    ],
)
def test_contradictions_are_errors(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        options("8.9", **more)


def test_a_missing_library_is_named_before_anything_is_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr("edgediffusion.tensorrt_library.importlib.util", here)
    message = (
        r'needs TensorRT for RTX, which is not .*: pip install "edgediffusion\[tensorrt-rtx\]"'
    )
    with pytest.raises(DeviceError, match=message):
        export_tiny(checkpoint, tmp_path / "b", precision="fp16", targets=("tensorrt-rtx",))
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(find_spec=lambda name: object())
    monkeypatch.setattr("edgediffusion.tensorrt_library.importlib.util", here)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    message = "TensorRT for RTX is installed but does not load: .* --force-reinstall"
    with pytest.raises(DeviceError, match=message):
        TENSORRT_RTX.load()


def test_the_note_of_a_network_that_stays_in_fp32_is_known_to_the_runtime() -> None:
    from edgediffusion_export.precision import Overflow

    assert Overflow({"conv": 1e5}, 2, 0.0).note_of_whole().startswith(STAYS_FP32)
