"""The TensorRT backend, against a TensorRT and a GPU that the tests make up."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import shlex
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

import edgediffusion as ed
from edgediffusion import engine_cache as engine_cache_module
from edgediffusion import engine_tensorrt, tensorrt_library
from edgediffusion.builds import read_build
from edgediffusion.engine import EngineOptions, open_engine
from edgediffusion.engine_cache import LIMIT_VARIABLE, EngineCache, engine_cache
from edgediffusion.golden import check_graph, read_tensors
from edgediffusion.graph_bytes import read_graph_bytes
from edgediffusion.hashing import SELF_TESTS, recall, sha256_file
from edgediffusion.manifest import STAYS_FP32, FileSpec
from edgediffusion.manifest_file import MANIFEST_NAME, dump_manifest, read_manifest
from edgediffusion.one_builder import one_builder
from edgediffusion.switches import CUDA_GRAPH, TENSORRT_REFIT
from edgediffusion.tensorrt_run import NOT_CAPTURED
from tests.runtime.fake_cuda import CudaError, FakeGpu
from tests.runtime.fake_tensorrt import NETWORKS, FakeTensorRt, OnnxParserRefitter
from tests.runtime.on_fake_gpu import fill_disk, inputs_of, install, opened, prove_all

CACHE = "EDGEDIFFUSION_CACHE"
TENSORRT = "tensorrt"


pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """TensorRT 11.4 and a GPU, both installed."""
    monkeypatch.setattr(engine_tensorrt, "driver_version", lambda: "580.65.06")
    made = FakeTensorRt("tensorrt", FakeGpu())
    install(made, monkeypatch)
    return made


def engines() -> list[str]:
    return sorted(entry.label for entry in engine_cache().entries())


def test_every_graph_runs_passes_its_gate_and_gives_everything_back(
    half_bundle: Path, fake: FakeTensorRt
) -> None:
    prove_all(half_bundle, TENSORRT)
    assert not fake.gpu.held


@pytest.mark.parametrize(
    ("version", "networks"),
    [("10.16.1", NETWORKS), ("12.0.0", {})],
    ids=["version 10", "a version without the flag"],
)
def test_other_versions_build_strongly_typed_networks_too(
    half_bundle: Path,
    fake: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    networks: dict[str, int],
) -> None:
    fake.version, fake.networks = version, networks
    install(fake, monkeypatch)
    for _ in range(2):
        with opened(half_bundle, TENSORRT) as engine:
            engine(**inputs_of(half_bundle, engine))
    assert len(fake.builds) == 1
    assert engine_tensorrt.libraries()["tensorrt"] == version


def changed_bundle(bundle: Path, copy: Path, what: str) -> Path:
    """A copy of a bundle whose text encoder has another graph, or other weights, of one shape."""
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    component = manifest.components["text_encoder"]
    name = component.graphs[0].file if what == "graph" else component.weights
    content = bytearray((copy / name).read_bytes())
    if what == "graph":
        model = onnx.load_from_string(bytes(content))
        model.producer_name = "another exporter"
        content = bytearray(model.SerializeToString())
    else:
        content[-1] ^= 0x40
    (copy / name).write_bytes(content)
    files = manifest.files | {name: FileSpec(len(content), sha256_file(copy / name))}
    changed = msgspec.structs.replace(manifest, files=files)
    (copy / MANIFEST_NAME).write_bytes(dump_manifest(changed))
    return copy


@pytest.mark.parametrize("what", ["graph", "weights"])
def test_another_graph_or_other_weights_build_anew(
    half_bundle: Path, fake: FakeTensorRt, tmp_path: Path, what: str
) -> None:
    opened(half_bundle, TENSORRT).close()
    other = changed_bundle(half_bundle, tmp_path / half_bundle.name, what)
    for _ in range(2):
        opened(other, TENSORRT).close()
    assert len(fake.builds) == 2
    assert engines() == ["kernel timings", *["tiny/text_encoder/b1.onnx"] * 2]
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2


def test_outputs_are_those_of_the_cpu_the_callers_own_and_the_same_each_time(
    half_bundle: Path, fake: FakeTensorRt
) -> None:
    with opened(half_bundle, "cpu", "unet") as engine:
        inputs = inputs_of(half_bundle, engine)
        want = engine(**inputs)["out_sample"]
    with opened(half_bundle, TENSORRT, "unet") as engine:
        first = engine(**inputs)["out_sample"]
        assert np.array_equal(first, want)
        kept = first.copy()
        engine(**inputs | {"sample": inputs["sample"] * 2})
        assert np.array_equal(first, kept)
        strided = np.asfortranarray(inputs["sample"])
        assert np.array_equal(engine(**inputs | {"sample": strided})["out_sample"], kept)
    with pytest.raises(ed.EngineError, match="is closed: open it again"):
        engine(**inputs)
    assert not fake.gpu.held


def test_calls_launch_one_captured_graph(half_bundle: Path, fake: FakeTensorRt) -> None:
    with opened(half_bundle, TENSORRT) as engine:
        assert fake.gpu.launches == 0
        for _ in range(3):
            engine(**inputs_of(half_bundle, engine))
        assert fake.gpu.launches == 3


@pytest.mark.parametrize("refusal", ["library", "driver"])
def test_a_graph_that_cannot_be_captured_runs_kernel_by_kernel(
    half_bundle: Path, fake: FakeTensorRt, refusal: str
) -> None:
    if refusal == "library":
        fake.is_capturable = False
    else:
        fake.gpu.broken["cudaStreamEndCapture"] = CudaError.cudaErrorStreamCaptureInvalidated
    with opened(half_bundle, "cpu", "unet") as engine:
        inputs = inputs_of(half_bundle, engine)
        want = engine(**inputs)["out_sample"]
    with opened(half_bundle, TENSORRT, "unet") as engine:
        assert np.array_equal(engine(**inputs)["out_sample"], want)
        assert engine.note == NOT_CAPTURED
    assert fake.gpu.launches == 0
    assert not fake.gpu.held
    with ed.Pipeline.open(half_bundle, device=TENSORRT) as pipe:
        pipe.embed(["a"])
        assert pipe.device_reason.endswith(f"; text_encoder/b1.onnx {NOT_CAPTURED}")
    graphs = [
        each for each in ed.verify(ed.Bundle.open(half_bundle), TENSORRT) if "L2" in each.detail
    ]
    assert graphs
    assert all(check.detail.endswith(NOT_CAPTURED) for check in graphs)


def test_the_second_start_loads_what_the_first_built(half_bundle: Path, fake: FakeTensorRt) -> None:
    for _ in range(3):
        with opened(half_bundle, TENSORRT) as engine:
            engine(**inputs_of(half_bundle, engine))
    assert len(fake.builds) == 1
    assert engines() == ["kernel timings", "tiny/text_encoder/b1.onnx"]


def test_capturing_can_be_switched_off_from_outside(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUDA_GRAPH, "0")
    with opened(half_bundle, TENSORRT) as engine:
        engine(**inputs_of(half_bundle, engine))
        assert engine.note is None
    assert fake.gpu.launches == 0


def test_engines_can_be_kept_without_weights(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(half_bundle, TENSORRT, "unet") as engine:
        inputs = inputs_of(half_bundle, engine)
        want = engine(**inputs)["out_sample"]
    whole = the_plan()
    monkeypatch.setenv(TENSORRT_REFIT, "1")
    for _ in range(2):
        with opened(half_bundle, TENSORRT, "unet") as engine:
            assert np.array_equal(engine(**inputs)["out_sample"], want)
    assert len(fake.builds) == 2  # one with the weights, one without, each kept
    assert fake.refits == 2
    (stripped,) = set(engine_cache().folder.glob("*/engine.plan")) - {whole}
    graph = ed.Bundle.open(half_bundle).graph("unet", size=(64, 64))
    weights = read_graph_bytes(half_bundle / graph.file).weights
    assert whole.stat().st_size - stripped.stat().st_size > 0.9 * weights
    assert not fake.gpu.held


def test_weights_that_do_not_fit_their_engine_are_an_error(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORRT_REFIT, "1")
    monkeypatch.setattr(OnnxParserRefitter, "refit_from_file", lambda self, model: False)
    with pytest.raises(ed.EngineError, match="does not fill its engine with weights: it gave no"):
        opened(half_bundle, TENSORRT)
    assert not fake.gpu.held


def test_too_little_memory_counts_the_weights_that_come_later(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORRT_REFIT, "1")
    opened(half_bundle, TENSORRT, "unet").close()
    fake.gpu.memory = the_plan().stat().st_size
    with pytest.raises(ed.DeviceError, match="loading unet/"):
        opened(half_bundle, TENSORRT, "unet")


def test_a_switch_that_makes_no_sense_is_named(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORRT_REFIT, "yes")
    with pytest.raises(ed.RequestError, match="TENSORRT_REFIT must be 0 or 1, got 'yes'"):
        opened(half_bundle, TENSORRT)


@pytest.mark.parametrize("change", ["version", "capability", "name", "driver", "cuda"])
def test_another_library_driver_or_gpu_builds_anew(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    opened(half_bundle, TENSORRT).close()
    changes = {
        "version": lambda: setattr(fake, "version", "11.5.0"),
        "capability": lambda: setattr(fake.gpu, "capability", (12, 0)),
        "name": lambda: setattr(fake.gpu, "name", "Fake RTX 5090"),
        "driver": lambda: monkeypatch.setattr(engine_tensorrt, "driver_version", lambda: "581.2"),
        "cuda": lambda: setattr(fake.gpu, "driver", 13030),
    }
    changes[change]()
    install(fake, monkeypatch)
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2
    assert fake.timing_caches == [b"", b""]


def test_threads_do_not_matter(half_bundle: Path, fake: FakeTensorRt) -> None:
    bundle = ed.Bundle.open(half_bundle)
    spec = bundle.graph("text_encoder")
    for threads in (1, 2):
        options = EngineOptions(threads=threads)
        content = bundle.content(spec)
        open_engine(spec, bundle.path, "tensorrt", options, content).close()
    assert len(fake.builds) == 1


def the_plan() -> Path:
    (plan,) = engine_cache().folder.glob("*/engine.plan")
    return plan


@pytest.mark.parametrize("damage", [b"", b"half a plan", None])
def test_a_half_written_or_foreign_plan_is_built_again(
    half_bundle: Path, fake: FakeTensorRt, damage: bytes | None
) -> None:
    opened(half_bundle, TENSORRT).close()
    foreign = FakeTensorRt("tensorrt", fake.gpu, "9.9.9").plan(fake.builds[0], ("8.9",))
    the_plan().write_bytes(foreign if damage is None else damage)
    with opened(half_bundle, TENSORRT) as engine:
        engine(**inputs_of(half_bundle, engine))
    assert len(fake.builds) == 2
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2


def test_a_plan_that_the_library_will_not_have_is_built_again(
    half_bundle: Path, fake: FakeTensorRt
) -> None:
    """Intact in the cache, and refused all the same."""
    opened(half_bundle, TENSORRT).close()
    fake.refusals = 1
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2
    fake.refusals = 9
    message = "b1.onnx: its engine does not load: the plan is not for here: <Diagnostics.MALFORMED"
    with pytest.raises(ed.EngineError, match=message):
        opened(half_bundle, TENSORRT)
    assert not fake.gpu.held


def test_timings_are_kept_for_the_next_graph(half_bundle: Path, fake: FakeTensorRt) -> None:
    for component in ("text_encoder", "vae_decoder", "unet"):
        opened(half_bundle, TENSORRT, component).close()
    assert fake.timing_caches == [b"", b"timings after ", b"timings after timings after "]


def test_timings_of_another_gpu_are_left_aside(half_bundle: Path, fake: FakeTensorRt) -> None:
    opened(half_bundle, TENSORRT).close()
    machine = engine_tensorrt.libraries()
    engine_tensorrt.TimingCache(engine_cache(), machine).keep(b"of another GPU")
    opened(half_bundle, TENSORRT, "unet").close()
    assert fake.timing_caches == [b"", b""]


def test_an_interrupted_build_leaves_nothing(half_bundle: Path, fake: FakeTensorRt) -> None:
    fake.while_building = _thread.interrupt_main
    with pytest.raises(KeyboardInterrupt):
        opened(half_bundle, TENSORRT)
    folder = engine_cache().folder
    assert {path.name for path in folder.iterdir()} <= {".lock", ".building"}
    assert not fake.gpu.held


@pytest.mark.parametrize("damaged", [False, True])
def test_two_that_build_at_once_build_once(
    half_bundle: Path, fake: FakeTensorRt, damaged: bool
) -> None:
    """In two threads here; the lock is the operating system's, and holds between processes too."""
    if damaged:
        opened(half_bundle, TENSORRT).close()
        the_plan().write_bytes(b"half a plan")
    fake.builds.clear()
    both = threading.Barrier(2)
    made: list[bytes] = []

    def work() -> None:
        both.wait()
        with opened(half_bundle, TENSORRT) as engine:
            made.append(engine(**inputs_of(half_bundle, engine))["pooler_output"].tobytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.builds) == 1
    assert len(made) == 2
    assert len(set(made)) == 1


def hold_the_turn(cache: str, held: Any, release: Any) -> None:
    """In another process: build for a while."""
    os.environ[CACHE] = cache
    with one_builder(engine_cache()):
        held.set()
        release.wait()


def test_another_process_that_builds_is_waited_for(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold_the_turn, args=(str(tmp_path / "cache"), held, release))
    other.start()
    held.wait()

    def take_a_turn() -> None:
        with one_builder(engine_cache()):
            pass

    mine = threading.Thread(target=take_a_turn)
    mine.start()
    mine.join(timeout=0.5)
    assert mine.is_alive(), "it did not wait"
    release.set()
    mine.join()
    other.join()


def test_a_cache_that_cannot_be_written_costs_one_build_a_start(
    half_bundle: Path, fake: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE, str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="the engine cache in .* cannot be used"):
        opened(half_bundle, TENSORRT).close()
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2


def test_a_disk_that_fills_up_builds_once_and_warns(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch, "engine.plan")
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 1
    assert "tiny/text_encoder/b1.onnx" not in engines()


def test_too_little_memory_names_what_is_needed_and_what_is_there(
    half_bundle: Path, fake: FakeTensorRt
) -> None:
    fake.device_memory = 3 << 30
    fake.gpu.memory = 2 << 30
    message = (
        r"running text_encoder/b1.onnx needs 3.0 GiB of GPU memory, Fake RTX 4090 has 2.0 GiB free "
        "of 2.0 GiB: close what else uses it, export a smaller --size, or use device 'cpu'"
    )
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, TENSORRT)
    fake.gpu.memory = 1
    with pytest.raises(ed.DeviceError, match=r"loading text_encoder/b1.onnx needs 0\.\d MiB of"):
        opened(half_bundle, TENSORRT)
    assert not fake.gpu.held
    assert engines() == ["kernel timings"]


@pytest.mark.parametrize(
    "words",
    [
        "Error Code 2: OutOfMemory (no further information)",
        "Skipping tactic 3 due to insufficient memory",
    ],
)
def test_a_build_without_enough_memory_names_the_figures_and_is_not_tried_again(
    half_bundle: Path, fake: FakeTensorRt, words: str
) -> None:
    fake.build_error = words
    message = (
        r"does not build in tensorrt: .*\. The build needs more than the weights alone, \d+\.\d "
        r"MiB of GPU memory, Fake RTX 4090 has 24.0 GiB free of 24.0 GiB: close what else"
    )
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, TENSORRT)
    assert len(fake.builds) == 1


def test_a_gpu_that_the_library_builds_nothing_for_is_named(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.gpu.name, fake.gpu.capability = "GeForce GTX 1080", (6, 1)
    fake.build_error = (
        "API Usage Error (Target GPU SM 61 is not supported by this TensorRT release.)"
    )
    message = (
        r"tensorrt 11.4.0 builds nothing for the GeForce GTX 1080, which has compute capability "
        r"6.1: use device 'cuda' or 'cpu', or install an earlier TensorRT for an older GPU"
    )
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, TENSORRT)


def test_another_failure_of_a_build_is_the_librarys_own_words(
    half_bundle: Path, fake: FakeTensorRt
) -> None:
    fake.build_error = "could not find any implementation for node conv_in"
    with pytest.raises(ed.EngineError, match="does not build in tensorrt: could not find any impl"):
        opened(half_bundle, TENSORRT)


def test_a_library_that_gives_no_builder_says_why(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(log: Any) -> Any:
        log.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", none)
    message = r"tensorrt 11.4.0 does not start: CUDA initialization failure with error: 35. Does n"
    with pytest.raises(ed.EngineError, match=message):
        opened(half_bundle, TENSORRT)


def test_an_fp32_bundle_names_the_export_it_needs(demo: Path, fake: FakeTensorRt) -> None:
    bundle = ed.Bundle.open(demo)
    message = "computes in fp32, devices of TensorRT are for fp16: .* --precision fp16"
    with pytest.raises(ed.DeviceError, match=message):
        open_engine(bundle.graph("text_encoder"), bundle.path, "tensorrt")
    assert not fake.builds


def test_what_the_export_left_in_fp32_runs_in_fp32(demo: Path, fake: FakeTensorRt) -> None:
    bundle = ed.Bundle.open(demo)
    spec = bundle.graph("text_encoder")
    spec = msgspec.structs.replace(spec, note=f"{STAYS_FP32}: conv reaches 1e+05")
    tensors = read_tensors(bundle.file(bundle.manifest.components["text_encoder"].golden))
    with open_engine(spec, bundle.path, "tensorrt") as engine:
        assert engine.arithmetic == "fp32"
        assert check_graph(engine, tensors) <= bundle.gate(spec, "fp32")


def test_an_engine_of_another_graph_is_refused(half_bundle: Path, fake: FakeTensorRt) -> None:
    bundle = ed.Bundle.open(half_bundle)
    spec = bundle.graph("text_encoder")
    other = msgspec.structs.replace(spec, inputs=bundle.graph("unet", size=(64, 64)).inputs)
    message = r"not of the graph that the manifest describes:\n  engine has input_ids int64 \(1, 77"
    with pytest.raises(ed.EngineError, match=message):
        open_engine(other, bundle.path, "tensorrt")
    assert not fake.gpu.held


def test_an_engine_without_a_context_says_why(half_bundle: Path, fake: FakeTensorRt) -> None:
    fake.gives_contexts = False
    message = r"text_encoder/b1.onnx gets no execution context: out of something"
    with pytest.raises(ed.EngineError, match=message):
        opened(half_bundle, TENSORRT)
    assert not fake.gpu.held


def test_a_run_that_fails_says_why(half_bundle: Path, fake: FakeTensorRt) -> None:
    fake.is_capturable = False
    with opened(half_bundle, TENSORRT) as engine:
        inputs = inputs_of(half_bundle, engine)
        fake.fails_to_run = True
        with pytest.raises(ed.EngineError, match=r"b1.onnx failed in TensorRT: a kernel failed"):
            engine(**inputs)


def test_a_gpu_that_fails_says_in_which_call(half_bundle: Path, fake: FakeTensorRt) -> None:
    with opened(half_bundle, TENSORRT) as engine:
        inputs = inputs_of(half_bundle, engine)
        fake.gpu.broken = {"cudaMemcpyAsync": CudaError.cudaErrorIllegalAddress}
        with pytest.raises(
            ed.EngineError, match=r"CUDA failed in cudaMemcpyAsync: cudaErrorIllegalAddress"
        ):
            engine(**inputs)
        fake.gpu.broken = {}


@pytest.mark.parametrize(
    ("driver", "error", "visible", "message"),
    [
        (0, "InsufficientDriver", None, "needs an NVIDIA GPU, and no NVIDIA driver is installed"),
        (12040, "InsufficientDriver", None, "a driver for CUDA 13.5, .* is for CUDA 12.4: update"),
        (13020, "NoDevice", None, "finds no NVIDIA GPU: cudaErrorNoDevice. Look at nvidia-smi"),
        (13020, "NoDevice", "-1", r"no NVIDIA GPU \(CUDA_VISIBLE_DEVICES is '-1'\)"),
    ],
)
def test_a_missing_driver_or_gpu_is_named(
    half_bundle: Path,
    fake: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    driver: int,
    error: str,
    visible: str | None,
    message: str,
) -> None:
    fake.gpu.driver = driver
    fake.gpu.broken = {"cudaGetDeviceCount": CudaError[f"cudaError{error}"]}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, TENSORRT)
    (row,) = [report for report in ed.devices() if report.name == "tensorrt"]
    assert not row.works


def test_a_missing_library_names_the_extra(
    half_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library.Library, "is_installed", False)
    message = (
        r"'tensorrt' needs TensorRT, which is not installed: pip install \"edgediffusion\[tens"
    )
    with pytest.raises(ed.DeviceError, match=message):
        ed.Pipeline.open(half_bundle, device="tensorrt")


def test_a_missing_cuda_python_names_the_extra(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    message = r"needs cuda-python, which does not load .*: pip install \"edgediffusion\[tensorrt\]"
    with pytest.raises(ed.DeviceError, match=message):
        opened(half_bundle, TENSORRT)


def test_devices_say_the_version_and_the_gpu(fake: FakeTensorRt) -> None:
    (row,) = [report for report in ed.devices() if report.name == "tensorrt"]
    assert row.works
    said = "TensorRT 11.4.0 on Fake RTX 4090, compute capability 8.9, 24.0 GiB, computes in fp16"
    assert row.detail == said


def scaled(monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    """Let the fake compute something else for graphs with ``only`` in their name."""
    run = engine_tensorrt.TensorRtBackend.run

    def wrong(self: Any, inputs: Any) -> list[Any]:
        factor = 2 if only in self._spec.file else 1
        return [out * factor for out in run(self, inputs)]

    monkeypatch.setattr(engine_tensorrt.TensorRtBackend, "run", wrong)


def test_what_was_built_is_proven_though_it_was_asked_for_by_name(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = ed.Request(prompt="red", steps=1, seed=1)
    with ed.Pipeline.open(half_bundle, device="tensorrt") as pipe:
        result = pipe.generate(request)
    assert (result.device, result.arithmetic) == ("tensorrt", "fp16")
    assert result.device_reason.startswith("asked for by name; 3 graphs proven, worst L2 ")
    monkeypatch.setenv(CACHE, str(engine_cache().folder / "another"))
    scaled(monkeypatch, "text_encoder")
    with (
        ed.Pipeline.open(half_bundle, device="tensorrt") as pipe,
        pytest.raises(ed.EngineError, match=r"in fp16 misses its golden vectors: L2 1.0e") as error,
    ):
        pipe.generate(request)
    said = str(error.value)
    assert (
        "This names the layer (docs/tensorrt.md has inputs.py, and more): polygraphy run " in said
    )
    assert f"polygraphy run {half_bundle / 'text_encoder' / 'b1.onnx'} --onnxrt --trt " in said
    page = (Path(__file__).parents[2] / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    shown = shlex.split(page.partition("\npolygraphy run ")[2].partition("```")[0])
    options = shlex.split(said.partition("--strongly-typed ")[2])
    assert len(options) == 8
    assert all(option in shown for option in options)


def make_picture(bundle: Path, device: str = TENSORRT) -> None:
    with ed.Pipeline.open(bundle, device=device) as pipe:
        pipe.generate(ed.Request(prompt="red", steps=1, seed=1))


def break_plan() -> None:
    plan = next(engine_cache().folder.glob("*/engine.plan"))
    plan.write_bytes(plan.read_bytes()[:-1])


def test_a_build_is_proven_once(half_bundle: Path, fake: FakeTensorRt, proofs: list[str]) -> None:
    for _ in range(3):
        make_picture(half_bundle)
    assert len(fake.builds) == len(proofs) == 3


@pytest.mark.parametrize(("change", "anew"), [("damage", 1), ("refusal", 1), ("refit", 3)])
def test_what_was_built_anew_is_proven_anew(
    half_bundle: Path,
    fake: FakeTensorRt,
    proofs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    anew: int,
) -> None:
    """TensorRT times kernels to choose them: two builds of one graph may compute otherwise."""
    make_picture(half_bundle)
    if change == "damage":
        break_plan()
    elif change == "refusal":
        fake.refusals = 1
    else:
        monkeypatch.setenv(TENSORRT_REFIT, "1")
    make_picture(half_bundle)
    assert len(fake.builds) == len(proofs) == 3 + anew
    make_picture(half_bundle)
    assert len(fake.builds) == len(proofs) == 3 + anew


def test_a_rebuild_that_computes_something_else_is_found(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_picture(half_bundle)
    break_plan()
    for component in ("text_encoder", "unet", "vae_decoder"):
        scaled(monkeypatch, component)
    with pytest.raises(ed.EngineError, match="misses its golden vectors"):
        make_picture(half_bundle)


def test_without_a_cache_every_build_is_proven_and_none_remembered(
    half_bundle: Path, fake: FakeTensorRt, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    for _ in range(2):
        make_picture(half_bundle)
    assert len(fake.builds) == len(proofs) == 6
    assert recall(SELF_TESTS) == {}


def test_a_proof_holds_in_a_cache_that_cannot_be_written(
    half_bundle: Path, fake: FakeTensorRt, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_picture(half_bundle)

    def refuse(self: EngineCache) -> Any:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(EngineCache, "_locked", refuse)
    make_picture(half_bundle)
    assert len(fake.builds) == len(proofs) == 3


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
def test_a_build_without_its_name_is_built_again(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """As an edgediffusion before builds had names left them."""
    opened(half_bundle, TENSORRT).close()
    name = the_plan().with_name("build")
    if damage == "missing":
        name.unlink()
    else:
        name.write_bytes(b"\xff")
    monkeypatch.setattr(engine_cache_module, "_is_intact", lambda folder: True)
    with pytest.raises(ed.EngineError, match=r"the build in .* has no name: "):
        read_build(name.parent)
    opened(half_bundle, TENSORRT).close()
    assert len(fake.builds) == 2


def test_auto_takes_it_for_an_fp16_bundle_and_proves_it(
    half_bundle: Path, fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled(monkeypatch, "vae_decoder")
    with ed.Pipeline.open(half_bundle) as pipe:
        assert pipe.device == "tensorrt"
        result = pipe.generate(ed.Request(prompt="red", steps=1, seed=1))
    assert "tensorrt" in result.device.split("+")
    assert result.device != "tensorrt"
    assert "tensorrt was passed over for vae_decoder/64x64.b1.onnx" in result.device_reason


def test_auto_leaves_it_out_for_an_fp32_bundle(demo: Path, fake: FakeTensorRt) -> None:
    with ed.Pipeline.open(demo) as pipe:
        pipe.embed(["a"])
        assert "tensorrt" not in pipe.device + pipe.device_reason
    assert not fake.builds
