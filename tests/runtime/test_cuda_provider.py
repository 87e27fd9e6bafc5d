"""What is said where CUDA does not work. The real messages came from onnxruntime-gpu 1.31.1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import edgediffusion as ed
from edgediffusion import auto, cuda_provider, engine_cuda
from edgediffusion.cuda_provider import missing_library, require_cuda
from edgediffusion.gpu import Gpu
from tests.runtime.nvidia import A_GPU


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    require_cuda.cache_clear()
    yield
    require_cuda.cache_clear()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend to have onnxruntime-gpu and a GPU; the provider of the probe is the argument's."""

    def do(gpu: Gpu = A_GPU, provider: str = "CPUExecutionProvider") -> None:
        monkeypatch.setattr(cuda_provider, "is_installed", lambda: True)
        monkeypatch.setattr(cuda_provider, "read_gpu", lambda: gpu)
        monkeypatch.setattr(cuda_provider, "PROVIDER", provider)
        monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)

    return do


def test_the_probe_is_the_graph_that_it_says() -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    assert model.SerializeToString() == cuda_provider._PROBE
    onnx.checker.check_model(cuda_provider._PROBE)


def test_a_working_provider_gives_its_gpu_and_is_asked_once(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    assert require_cuda() == A_GPU
    monkeypatch.setattr(cuda_provider, "read_gpu", lambda: pytest.fail("asked again"))
    assert require_cuda() is require_cuda()


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="onnxruntime-gpu is installed",
)
def test_the_wheel_without_cuda_is_named_with_the_two_steps() -> None:
    if sys.platform == "darwin":
        pytest.skip("there is none for macOS")
    said = r"has no CUDA provider: pip uninstall -y onnxruntime onnxruntime-gpu && pip install"
    with pytest.raises(ed.DeviceError, match=said):
        require_cuda()
    with pytest.raises(ed.DeviceError, match=said):
        ed.Pipeline.open(device="cuda")


def test_a_system_without_any_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_provider, "is_installed", lambda: False)
    here = SimpleNamespace(system=lambda: "Darwin", machine=lambda: "arm64")
    monkeypatch.setattr(cuda_provider, "platform", here)
    with pytest.raises(ed.DeviceError, match="not offered for Darwin on arm64, only for Linux"):
        require_cuda()


def test_a_driver_of_an_earlier_cuda_is_named(pretend: Callable[..., None]) -> None:
    pretend(replace(A_GPU, cuda=(12, 8)))
    said = r"Pretend 4090 runs CUDA up to 12\.8, onnxruntime-gpu .* needs CUDA 13\.0: update the dr"
    with pytest.raises(ed.DeviceError, match=said):
        require_cuda()


def test_a_gpu_of_an_earlier_kind_is_named(pretend: Callable[..., None]) -> None:
    pretend(replace(A_GPU, capability=(6, 1)))
    said = r"has compute capability 6\.1, CUDA 13\.0 needs at least 7\.5: use device 'cpu'"
    with pytest.raises(ed.DeviceError, match=said):
        require_cuda()


def test_a_provider_that_steps_aside_is_an_error_with_the_missing_library(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    monkeypatch.setattr(cuda_provider, "missing_library", lambda: "libx.so.13: cannot open")
    opened = onnxruntime.InferenceSession

    class Aside:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.session = opened(*arguments, **options)

        def get_providers(self) -> list[str]:
            return ["SomeOtherProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Aside)
    said = r"does not start: libx\.so\.13: cannot open\. Get the CUDA and cuDNN libraries with pip"
    with pytest.raises(ed.DeviceError, match=said):
        require_cuda()


def test_a_provider_that_raises_is_quoted(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("CUDA failure 35")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(ed.DeviceError, match="does not start: CUDA failure 35"):
        require_cuda()


@pytest.mark.parametrize(
    ("code", "stderr", "said"),
    [
        (1, "Traceback\nOSError: libcublasLt.so.13: cannot open", "libcublasLt.so.13: cannot open"),
        (1, "Aborted", "Aborted"),
        (0, "", "loads and still refuses"),
    ],
)
def test_the_missing_library_is_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, said: str
) -> None:
    done = SimpleNamespace(returncode=code, stderr=stderr)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: done)
    assert said in missing_library()


def test_the_missing_library_is_looked_for_in_another_process() -> None:
    """The stock wheel has no CUDA provider, so the system names its file; else the first it needs.

    On a machine where all is there, there is nothing to name.
    """
    said = missing_library()
    assert any(name in said for name in ("onnxruntime_providers_cuda", "libcu", "still refuses"))


def test_auto_takes_a_working_gpu_first(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend()
    monkeypatch.setattr(auto, "has_cuda", lambda: True)
    first, *rest = auto.candidates()
    assert first == ("cuda", "there is an NVIDIA Pretend 4090 with its libraries")
    assert rest[-1].device == "cpu"


def test_auto_says_why_a_gpu_is_out(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(replace(A_GPU, cuda=(12, 8)))
    monkeypatch.setattr(auto, "has_cuda", lambda: True)
    first, *_ = auto.candidates()
    assert first.device != "cuda"
    assert "runs CUDA up to 12.8" in first.why


def test_the_report_names_gpu_driver_and_library(pretend: Callable[..., None]) -> None:
    pretend()
    (report,) = (each for each in ed.devices() if each.name == "cuda")
    assert report.works
    assert report.detail.startswith(
        "NVIDIA Pretend 4090, compute capability 8.9, driver for CUDA 13.0, onnxruntime-gpu "
    )
    assert engine_cuda.libraries()["cuda"] == "13.0"
