"""The CUDA backend: buffers and bindings on the CPU provider, the rest around a pretended GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest

import edgediffusion as ed
from edgediffusion import engine_cuda
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.engine_bound import BoundBackend
from edgediffusion.engine_cuda import CudaOptions, arithmetic_of, open_cuda
from edgediffusion.golden import check_graph, golden_inputs, read_tensors
from edgediffusion.manifest import DeviceGraph, GraphSpec
from edgediffusion.switches import CUDA_GRAPH
from tests.runtime.nvidia import A_GPU, CapturingSession

CPU = "CPUExecutionProvider"


@pytest.fixture
def unet(demo: Path) -> tuple[GraphSpec, Path, dict[str, Any]]:
    bundle = ed.Bundle.open(demo)
    spec = bundle.graph("unet", size=(128, 128))
    tensors = read_tensors(bundle.file(bundle.manifest.components["unet"].golden))
    return spec, bundle.path / spec.file, golden_inputs(spec.golden[0], spec, tensors)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Let the CPU provider play the GPU; returns the paths that are opened."""
    opened: list[Path] = []

    def opening(path: Path, options: EngineOptions, cuda: CudaOptions, entries: Any) -> Any:
        opened.append(path)
        chosen = onnxruntime.SessionOptions()
        chosen.log_severity_level = 4
        chosen.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        session = onnxruntime.InferenceSession(str(path), chosen, providers=[CPU])
        return CapturingSession(session)

    monkeypatch.setattr(engine_cuda, "require_cuda", lambda: A_GPU)
    monkeypatch.setattr(engine_cuda, "PROVIDER", CPU)
    monkeypatch.setattr(engine_cuda, "_PLACE", "cpu")
    monkeypatch.setattr(engine_cuda, "_open", opening)
    return opened


def bound(unet: tuple[GraphSpec, Path, dict[str, Any]]) -> BoundBackend:
    spec, path, _ = unet
    session = onnxruntime.InferenceSession(str(path), providers=[CPU])
    return BoundBackend(session, spec, "fp32", "cpu", lambda error: ed.EngineError(str(error)))


def test_bound_buffers_compute_what_a_plain_call_computes(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
) -> None:
    spec, path, inputs = unet
    with open_engine(spec, path.parents[1], "cpu") as engine:
        want = engine(**inputs)["out_sample"]
    backend = bound(unet)
    (first,) = backend.run(inputs)
    kept = first.copy()
    assert np.array_equal(first, want)
    (other,) = backend.run(inputs | {"sample": inputs["sample"] * 2})
    assert not np.array_equal(other, want)
    assert np.array_equal(first, kept), "outputs are the caller's"
    assert np.array_equal(backend.run(inputs)[0], want)
    backend.close()


def test_the_addresses_stay_from_call_to_call(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
) -> None:
    backend = bound(unet)
    buffers = [*backend._inputs.values(), *backend._outputs]
    before = [value.data_ptr() for value in buffers]
    for _ in range(3):
        backend.run(unet[2])
    assert [value.data_ptr() for value in buffers] == before
    assert len(set(before)) == len(before), "an output never lies on an input"


def test_inputs_that_are_not_contiguous_arrive_whole(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
) -> None:
    backend, inputs = bound(unet), unet[2]
    turned = np.asfortranarray(inputs["sample"])
    assert not turned.flags.c_contiguous
    assert np.array_equal(backend.run(inputs | {"sample": turned})[0], backend.run(inputs)[0])


@pytest.mark.parametrize(("capture", "ids"), [(True, ["-1", None]), (False, ["-1"])])
def test_a_graph_is_run_once_before_it_is_captured(
    unet: tuple[GraphSpec, Path, dict[str, Any]], pretend: list[Path], capture: bool, ids: list[Any]
) -> None:
    spec, path, inputs = unet
    backend = open_cuda(spec, path, EngineOptions(), CudaOptions(capture=capture))
    session: Any = backend._session
    assert session.graph_ids == ids
    backend.run(inputs)
    assert session.graph_ids == [*ids, None]
    backend.close()


def test_every_graph_of_the_demo_passes_its_gate(demo: Path, pretend: list[Path]) -> None:
    bundle = ed.Bundle.open(demo)
    for name in ("text_encoder", "unet", "vae_decoder"):
        component = bundle.manifest.components[name]
        graph = component.graphs[0]
        with open_engine(graph, bundle.path, "cuda") as engine:
            assert (engine.device, engine.arithmetic) == ("cuda", "tf32")
            tensors = read_tensors(bundle.file(component.golden))
            assert check_graph(engine, tensors, cases=1) <= bundle.gate(graph, "tf32")


def test_pictures_are_made_on_it(
    demo: Path, pretend: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {"onnxruntime-gpu": "1"}
    monkeypatch.setattr(engine_cuda, "libraries", lambda: facts)
    request = ed.Request(prompt="a red circle", steps=2, seed=7)
    pictures = {}
    for device in ("cpu", "cuda"):
        with ed.Pipeline.open(demo, device=device) as pipe:
            result = pipe.generate(request)
        pictures[device] = result.images
        assert result.device == device
    # the CPU stands in for the GPU, by a session of other options: sums in another order
    apart = np.abs(pictures["cpu"].astype(int) - pictures["cuda"])
    assert apart.max() <= 1
    assert np.count_nonzero(apart) < 20


def test_the_graph_for_cuda_is_taken_where_there_is_one(
    unet: tuple[GraphSpec, Path, dict[str, Any]], copied: Path, pretend: list[Path]
) -> None:
    spec = unet[0]
    name = spec.file.replace(".onnx", ".cuda.onnx")
    (copied / spec.file).rename(copied / name)
    own = DeviceGraph(name, {"GroupNorm": 1}, spec.parity)
    fused = msgspec.structs.replace(spec, devices={"cuda": own})
    with open_engine(fused, copied, "cuda"):
        assert pretend == [copied / name]


@pytest.mark.parametrize(
    ("precision", "tf32", "capability", "arithmetic"),
    [
        ("fp16", True, (9, 0), "fp16"),
        ("fp32", True, (9, 0), "tf32"),
        ("fp32", False, (9, 0), "fp32"),
        ("fp32", True, (7, 5), "fp32"),
    ],
)
def test_the_arithmetic_is_named(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    precision: str,
    tf32: bool,
    capability: tuple[int, int],
    arithmetic: str,
) -> None:
    spec = msgspec.structs.replace(unet[0], precision=precision)
    assert arithmetic_of(spec, CudaOptions(tf32=tf32), capability) == arithmetic


def test_options_are_the_providers_own_words() -> None:
    assert CudaOptions().provider_options() == {
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "enable_cuda_graph": "1",
        "fuse_conv_bias": "1",
        "prefer_nhwc": "1",
        "use_tf32": "1",
    }
    off = CudaOptions(capture=False, nhwc=False, tf32=False, search=False).provider_options()
    assert [off[n] for n in ("enable_cuda_graph", "prefer_nhwc", "use_tf32")] == ["0"] * 3
    assert off["cudnn_conv_algo_search"] == "HEURISTIC"


@pytest.mark.parametrize(("text", "capture"), [("", True), ("0", False), ("1", True)])
def test_capturing_can_be_switched_off_from_outside(
    monkeypatch: pytest.MonkeyPatch, text: str, capture: bool
) -> None:
    monkeypatch.setenv(CUDA_GRAPH, text)
    assert CudaOptions.from_environment().capture == capture


def test_a_switch_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_GRAPH, "off")
    with pytest.raises(ed.RequestError, match="EDGEDIFFUSION_CUDA_GRAPH must be 0 or 1, got 'off'"):
        CudaOptions.from_environment()


def open_it(unet: tuple[GraphSpec, Path, dict[str, Any]]) -> Engine:
    spec, path, _ = unet
    return open_engine(spec, path.parents[1], "cuda")


def test_a_graph_that_slips_through_is_found_by_its_assignment(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = engine_cuda._open

    def other(*arguments: Any) -> Any:
        session = opening(*arguments)
        session.get_providers = lambda: ["CUDAExecutionProvider"]
        return session

    monkeypatch.setattr(engine_cuda, "_open", other)
    monkeypatch.setattr(engine_cuda, "PROVIDER", "CUDAExecutionProvider")
    said = (
        r"CUDA does not take all of the graph, .*Conv \(\d+x\).* Export the bundle again with --t"
    )
    with pytest.raises(ed.EngineError, match=said):
        open_it(unet)


def test_a_graph_that_is_not_taken_whole_names_the_operators(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opening = engine_cuda._open

    def strict(path: Path, options: Any, cuda: Any, entries: dict[str, str]) -> Any:
        if "session.disable_cpu_ep_fallback" in entries:
            raise RuntimeError("This session contains graph nodes that are assigned to the CPU EP")
        assert not cuda.capture
        return opening(path, options, cuda, entries)

    monkeypatch.setattr(engine_cuda, "_open", strict)
    monkeypatch.setattr(engine_cuda, "PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(ed.EngineError, match=r"does not take all of the graph, .*MatMul"):
        open_it(unet)


def test_a_session_that_opens_elsewhere_is_an_error(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_cuda, "PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(ed.DeviceError, match="opened it on CPUExecutionProvider instead of CUDA"):
        open_it(unet)


def failing(message: str) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(message)

    return fail


def test_a_graph_that_does_not_load_is_quoted(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_cuda, "_open", failing("no such kernel"))
    with pytest.raises(ed.EngineError, match="does not load in CUDA: no such kernel"):
        open_it(unet)


def test_a_graph_that_fails_on_the_gpu_is_quoted(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CapturingSession, "run_with_iobinding", failing("CUDA failure 700"))
    with pytest.raises(ed.EngineError, match="failed on the GPU: CUDA failure 700"):
        open_it(unet)


@pytest.mark.parametrize("when", ["loading", "running", "making buffers"])
def test_too_little_memory_comes_with_the_figures(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    words = "Failed to allocate memory for requested buffer of size 1638400"
    sessions = weakref.WeakSet[CapturingSession]()
    opening = engine_cuda._open

    def noting(*arguments: Any) -> Any:
        sessions.add(session := opening(*arguments))
        return session

    monkeypatch.setattr(engine_cuda, "_open", noting)
    monkeypatch.setattr(engine_cuda, "free_memory", lambda: (100 - len(sessions)) * 2**20)
    if when == "loading":
        monkeypatch.setattr(engine_cuda, "_open", failing(words))
    elif when == "running":
        monkeypatch.setattr(CapturingSession, "run_with_iobinding", failing("CUDA out of memory"))
    else:
        make = "ortvalue_from_shape_and_type"
        monkeypatch.setattr(onnxruntime.OrtValue, make, failing(words))
    said = (
        r"does not fit into the GPU's memory: its weights alone take up to \d+\.\d MiB, how much "
        r"its activations take on top is not known, 100\.0 MiB of 24\.0 GiB are free on the NVIDIA "
        r"Pretend 4090 without it\. ONNX Runtime says: "
    )
    with pytest.raises(ed.EngineError, match=said):
        open_it(unet)


def test_memory_that_runs_out_later_is_told_beside_what_the_graph_holds(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_cuda, "free_memory", lambda: 100 * 2**20)
    with open_it(unet) as engine:
        words = failing("Available memory of 7 is smaller than requested bytes of 9")
        monkeypatch.setattr(CapturingSession, "run_with_iobinding", words)
        with pytest.raises(
            ed.EngineError, match=r"4090 beside what it holds\. ONNX Runtime says: A"
        ):
            engine(**unet[2])


@pytest.mark.parametrize(
    "words",
    [
        "CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDA failure 2: out of memory",
        "Available memory of 7 is smaller than requested bytes of 9",
        "Failed to allocate memory for requested buffer of size 9",
    ],
)
def test_every_way_to_run_out_of_memory_is_known(
    unet: tuple[GraphSpec, Path, dict[str, Any]],
    pretend: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    monkeypatch.setattr(engine_cuda, "free_memory", lambda: 0)
    error = engine_cuda.explain(unet[1], RuntimeError(words))
    assert isinstance(error, engine_cuda.OutOfMemory)


def test_too_little_memory_where_the_driver_is_gone(
    unet: tuple[GraphSpec, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise ed.DeviceError("no driver")

    monkeypatch.setattr(engine_cuda, "require_cuda", gone)
    error = engine_cuda.explain(unet[1], RuntimeError("CUDNN_STATUS_ALLOC_FAILED"))
    assert "how much is free is not known (no driver)" in str(error)


def test_a_graph_that_is_not_the_manifests_is_refused(
    unet: tuple[GraphSpec, Path, dict[str, Any]], pretend: list[Path]
) -> None:
    spec, path, _ = unet
    other = msgspec.structs.replace(spec, inputs=spec.inputs[:2])
    with pytest.raises(ed.EngineError, match="is not the graph that the manifest describes"):
        open_engine(other, path.parents[1], "cuda")
