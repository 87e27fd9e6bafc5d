"""The TensorRT for RTX backend: a made-up library and GPU, and what the real one says without."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.cli import main
from edgediffusion.engine import open_engine
from edgediffusion.engine_cache import engine_cache
from edgediffusion.hashing import sha256_file
from edgediffusion.manifest import FileSpec, GraphSpec, PlanSpec
from edgediffusion.manifest_file import MANIFEST_NAME, dump_manifest, read_manifest
from edgediffusion.tensorrt_library import TENSORRT_RTX, message_log
from tests.runtime.fake_cuda import FakeGpu
from tests.runtime.fake_tensorrt import Diagnostics, FakeTensorRt
from tests.runtime.on_fake_gpu import fill_disk, inputs_of, install, opened, prove_all

INSTALLED = all(
    importlib.util.find_spec(name) is not None for name in ("tensorrt_rtx", "cuda.bindings")
)
VERSION = "1.7.1"
RTX = "tensorrt-rtx"


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    made = FakeTensorRt("tensorrt_rtx", FakeGpu(), VERSION)
    install(made, monkeypatch)
    return made


@pytest.fixture(scope="session")
def planned(half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp16 bundle with made-up plans, as an export would have left them."""
    folder = tmp_path_factory.mktemp("planned") / "tiny"
    shutil.copytree(half_bundle, folder)
    manifest = read_manifest(folder)
    maker = FakeTensorRt("tensorrt_rtx", FakeGpu(), VERSION)
    files = dict(manifest.files)

    def plan(graph: GraphSpec) -> GraphSpec:
        made = []
        for group in (("7.5",), ("8.6", "8.9")):
            name = f"{graph.file.removesuffix('.onnx')}.rtx-{'-'.join(group)}.plan"
            (folder / name).write_bytes(maker.plan(folder / graph.file, group))
            files[name] = FileSpec((folder / name).stat().st_size, sha256_file(folder / name))
            made.append(PlanSpec(name, VERSION, group))
        return msgspec.structs.replace(graph, plans=tuple(made))

    components = {
        name: msgspec.structs.replace(each, graphs=tuple(map(plan, each.graphs)))
        for name, each in manifest.components.items()
    }
    changed = msgspec.structs.replace(manifest, components=components, files=files)
    (folder / MANIFEST_NAME).write_bytes(dump_manifest(changed))
    return folder


def test_every_graph_runs_from_its_plan_and_passes_its_gate(
    planned: Path, fake: FakeTensorRt
) -> None:
    prove_all(planned, RTX)
    assert not fake.builds
    assert not fake.gpu.held


def test_kernels_are_compiled_once_for_a_gpu(
    planned: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for _ in range(3):
        with opened(planned, RTX) as engine:
            outputs.append(engine(**inputs_of(planned, engine))["pooler_output"])
    assert np.array_equal(outputs[0], outputs[2])
    assert fake.compiled == 1
    (entry,) = engine_cache().entries()
    assert (entry.device, entry.label) == ("tensorrt-rtx", "tiny/text_encoder/b1.onnx")
    fake.gpu.name = "Fake RTX 4060"
    install(fake, monkeypatch)
    opened(planned, RTX).close()
    assert fake.compiled == 2


def test_kernels_that_the_library_refuses_are_compiled_again(
    planned: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intact in the cache, for this GPU, and still of another machine, as the library sees it."""
    with monkeypatch.context() as patch:
        patch.setattr("tests.runtime.fake_tensorrt.RuntimeConfig.serialize", lambda _: b"other")
        opened(planned, RTX).close()
    assert fake.compiled == 1
    for _ in range(2):
        opened(planned, RTX).close()
        assert fake.compiled == 2
    assert not fake.gpu.held


def test_kernels_that_cannot_be_written_are_compiled_at_each_start(
    planned: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, "kernels.cache")
    with pytest.warns(RuntimeWarning, match=r"cannot be written: .*No space left on device"):
        opened(planned, RTX).close()
    assert engine_cache().entries() == []
    assert not fake.gpu.held


def test_kernels_that_were_compiled_anew_are_proven_anew(
    planned: Path, fake: FakeTensorRt, proofs: list[str]
) -> None:
    def embed() -> None:
        with ed.Pipeline.open(planned, device=RTX) as pipe:
            pipe.embed(["a"])

    embed()
    embed()
    assert (fake.compiled, len(proofs)) == (1, 1)
    next(engine_cache().folder.glob("*/kernels.cache")).write_bytes(b"damaged")
    embed()
    embed()
    assert (fake.compiled, len(proofs)) == (2, 2)


def test_a_pipeline_makes_a_picture(planned: Path, fake: FakeTensorRt) -> None:
    request = ed.Request(prompt="red", steps=2, seed=1)
    with ed.Pipeline.open(planned) as pipe:
        assert pipe.device == "tensorrt-rtx"
        result = pipe.generate(request)
    assert (result.device, result.arithmetic) == ("tensorrt-rtx", "fp16")
    assert result.device_reason.startswith("the bundle has engines of TensorRT for RTX; 3 graphs p")
    with ed.Pipeline.open(planned, device="cpu") as pipe:
        on_cpu = pipe.generate(request)
    assert np.array_equal(result.images, on_cpu.images)


def test_a_bundle_without_plans_names_the_export(half_bundle: Path, fake: FakeTensorRt) -> None:
    message = (
        r"has no engine of text_encoder/b1.onnx for tensorrt-rtx: edgediffusion export \.\.\. "
        "--precision fp16 --target tensorrt-rtx"
    )
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, RTX)
    with ed.Pipeline.open(half_bundle) as pipe:
        assert "tensorrt" not in pipe.device


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        (
            (12, 0),
            "has engines of text_encoder/b1.onnx for compute capability 7.5, 8.6, 8.9, not for "
            "Fake RTX 4090, which has compute capability 12.0: .* --compute-capability 12.0",
        ),
        ((9, 0), "does not run on Fake RTX 4090, which has .* 9.0, only on 7.5, 8.0, 8.6, 8.9, 12"),
    ],
)
def test_another_kind_of_gpu_is_named(
    planned: Path, fake: FakeTensorRt, capability: tuple[int, int], message: str
) -> None:
    fake.gpu.capability = capability
    with pytest.raises(ed.DeviceError, match=message):
        opened(planned, RTX)
    with ed.Pipeline.open(planned) as pipe:
        pipe.embed(["red"])
        assert "tensorrt-rtx was passed over for text_encoder/b1.onnx" in pipe.device_reason


def test_each_kind_of_gpu_has_its_plan(planned: Path, fake: FakeTensorRt) -> None:
    for capability in ((7, 5), (8, 6), (8, 9)):
        fake.gpu.capability = capability
        opened(planned, RTX).close()
    assert fake.compiled == 3


def test_a_plan_of_another_version_names_both(
    planned: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.version = "1.8.0"
    install(fake, monkeypatch)
    message = (
        r"b1.rtx-8.6-8.9.plan cannot be used: it was built with TensorRT for RTX 1.7.1, installed "
        "is 1.8.0: install that version, or edgediffusion export"
    )
    with pytest.raises(ed.DeviceError, match=message):
        opened(planned, RTX)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            Diagnostics.UNSUPPORTED_CC,
            "it is not for Fake RTX 4090, which has .* 8.9: edgediffusion",
        ),
        (Diagnostics.OLD_CUDA_DRIVER, "the NVIDIA driver, for CUDA 13.2, is too old: update it"),
        (Diagnostics.OLD_CUDA_RUNTIME, "its CUDA is too old: pip install .*rtx.* --upgrade"),
        (Diagnostics.INSUFFICIENT_GPU_MEMORY, "the GPU has too little memory: 24.0 GiB"),
        (
            Diagnostics.MALFORMED_ENGINE,
            "it is no engine of this library: copy or export the bundle",
        ),
        (Diagnostics.CUDA_ERROR, "CUDA is not well, look at nvidia-smi"),
    ],
)
def test_what_the_library_finds_is_said(
    planned: Path, fake: FakeTensorRt, found: Diagnostics, message: str
) -> None:
    fake.diagnostics = found
    with pytest.raises(ed.DeviceError, match=f"cannot be used: {message}"):
        opened(planned, RTX)


def test_too_little_memory_for_the_plan(planned: Path, fake: FakeTensorRt) -> None:
    fake.gpu.memory = 100
    with pytest.raises(
        ed.DeviceError, match=r"loading text_encoder/b1.onnx needs 0\.\d MiB of GPU"
    ):
        opened(planned, RTX)


def test_a_plan_that_is_gone_is_an_error(planned: Path, fake: FakeTensorRt, tmp_path: Path) -> None:
    bundle = ed.Bundle.open(shutil.copytree(planned, tmp_path / "copy"))
    spec = bundle.graph("text_encoder")
    bundle.file(spec.plans[1].file).write_bytes(b"")
    with pytest.raises(ed.EngineError, match=r"plan cannot be read: .*empty"):
        open_engine(spec, bundle.path, "tensorrt-rtx")
    with pytest.raises(ed.BundleError, match="has 0 bytes"):
        ed.Bundle.open(bundle.path)


def test_another_plan_is_other_content(planned: Path, half_bundle: Path) -> None:
    contents = set()
    for folder in (planned, half_bundle):
        bundle = ed.Bundle.open(folder)
        contents.add(bundle.content(bundle.graph("text_encoder")))
    assert len(contents) == 2


def test_an_old_reader_ignores_plans(planned: Path, half_bundle: Path) -> None:
    """Format 1: what a reader does not know is left aside, so the same graphs are there."""
    with_plans, without = read_manifest(planned), read_manifest(half_bundle)
    for name, component in without.components.items():
        graphs = with_plans.components[name].graphs
        assert [msgspec.structs.replace(g, plans=()) for g in graphs] == list(component.graphs)


DOCS = Path(__file__).parents[2] / "docs" / "tensorrt.md"


def test_the_commands_of_the_docs_run(
    planned: Path,
    fake: FakeTensorRt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(FakeTensorRt("tensorrt", fake.gpu), monkeypatch)
    shutil.copytree(planned, tmp_path / "my-rtx-bundle")
    monkeypatch.chdir(tmp_path)
    found = [line for line in DOCS.read_text("utf-8").splitlines() if line[:14] == "edgediffusion "]
    commands = [shlex.split(line)[1:] for line in found if " export " not in line]
    assert len(commands) == 5
    for command in commands:
        assert main(command) == 0, (command, capsys.readouterr())
    printed = capsys.readouterr().out
    assert "TensorRT for RTX 1.7.1 on Fake RTX 4090" in printed
    assert "unet/64x64.b2.onnx  L2 " in printed
    assert (tmp_path / "circle.png").stat().st_size > 100


def test_info_says_for_which_gpus_there_are_engines(
    planned: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for folder in (planned, demo):
        assert main(["info", str(folder)]) == 0
        lines = capsys.readouterr().out.splitlines()
        (said[folder],) = [line.split("  ")[-1] for line in lines if line.strip()[:7] == "engines"]
    kinds = "TensorRT for RTX 1.7.1, compute capability "
    assert said == {
        planned: f"{kinds}7.5; {kinds}8.6, 8.9",
        demo: "none built ahead of time",
    }


# --- the real library, on a machine without a GPU -------------------------------------------------

without_gpu = pytest.mark.skipif(
    not INSTALLED or shutil.which("nvidia-smi") is not None,
    reason="needs the extra tensorrt-rtx and a machine without an NVIDIA driver",
)


@without_gpu
def test_the_real_library_without_a_driver_is_our_error(planned: Path) -> None:
    message = "'tensorrt-rtx' needs an NVIDIA GPU, and no NVIDIA driver is installed here"
    with pytest.raises(ed.DeviceError, match=message):
        opened(planned, RTX)
    (row,) = [report for report in ed.devices() if report.name == "tensorrt-rtx"]
    assert not row.works
    assert "no NVIDIA driver" in row.detail


@without_gpu
@pytest.mark.parametrize("plan", [b"no plan at all" * 100, b""])
def test_the_real_library_says_why_it_does_not_load_a_plan(plan: bytes) -> None:
    trt = TENSORRT_RTX.load()
    log = message_log(trt)
    runtime = trt.Runtime(log)
    assert runtime.deserialize_cuda_engine(plan) is None
    assert "deserializeCudaEngine" in log.why()
    assert log.why() == "it gave no reason"
    validity, found = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    assert validity == trt.EngineValidity.INVALID
    assert found & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


@without_gpu
def test_the_interface_that_the_fake_stands_for_is_there() -> None:
    """What the fake has beside its own names, the real library has under the same names."""
    trt = TENSORRT_RTX.load()
    fake = FakeTensorRt("tensorrt_rtx", FakeGpu()).module()
    assert {name for name in vars(fake) if name[0] != "_"} <= set(dir(trt))
    assert set(vars(fake.BuilderFlag)) <= set(trt.BuilderFlag.__members__)
    for ours, real in (
        ("Engine", trt.ICudaEngine),
        ("Context", trt.IExecutionContext),
        ("Runtime", trt.Runtime),
        ("Builder", trt.Builder),
        ("Config", trt.IBuilderConfig),
        ("Refitter", trt.Refitter),
        ("OnnxParserRefitter", trt.OnnxParserRefitter),
    ):
        methods = vars(getattr(sys.modules[FakeTensorRt.__module__], ours))
        assert {name for name in methods if name[0] != "_"} <= set(dir(real)), ours


@without_gpu
def test_the_calls_that_the_fake_gpu_has_are_cudas() -> None:
    from cuda.bindings import runtime

    fake = FakeGpu().module()
    assert {name for name in vars(fake) if name.startswith("cuda")} <= set(dir(runtime))
    assert fake.cudaStreamNonBlocking == runtime.cudaStreamNonBlocking
    for error in fake.cudaError_t:
        assert getattr(runtime.cudaError_t, error.name) == error
