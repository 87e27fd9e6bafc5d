from __future__ import annotations

import sys
from importlib import metadata

import pytest

import edgediffusion as ed
from edgediffusion import engine_openvino, openvino_plugin
from edgediffusion.devices import DeviceReport


def report_on(name: str) -> DeviceReport:
    return next(report for report in ed.devices() if report.name == name)


def test_every_device_of_the_design_is_reported_once() -> None:
    names = [report.name for report in ed.devices()]
    assert names == ["cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx"]


def test_the_cpu_works_and_says_with_what() -> None:
    cpu = report_on("cpu")
    assert cpu.works
    assert cpu.detail.startswith("ONNX Runtime ")


def test_libraries_that_overwrite_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-directml":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert (
        "onnxruntime and onnxruntime-gpu and onnxruntime-openvino share one import package: "
        "pip uninstall onnxruntime onnxruntime-gpu"
    ) in report_on("cpu").detail


def test_an_onnx_runtime_that_does_not_import_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in ("cpu", "openvino"):
        assert not report_on(name).works
        assert "pip install --force-reinstall onnxruntime" in report_on(name).detail


@pytest.mark.parametrize(("bf16", "arithmetic"), [(True, "in bf16"), (False, "in fp32 (bf16 pays")])
def test_openvino_says_its_versions_and_arithmetic(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, arithmetic: str
) -> None:
    if not engine_openvino.is_installed():
        pytest.skip("OpenVINO for this CPU is not installed")
    monkeypatch.setattr(sys.modules[DeviceReport.__module__], "computes_bf16", lambda: bf16)
    openvino = report_on("openvino")
    assert openvino.works
    if engine_openvino.source() is openvino_plugin:
        plugin = metadata.version("onnxruntime-ep-openvino")
        assert f"in plugin {plugin} for ONNX Runtime " in openvino.detail
    else:
        assert f"OpenVINO {metadata.version('openvino')} of package" in openvino.detail
    assert openvino.detail.startswith("OpenVINO 20")
    assert openvino.detail.count(arithmetic) == 1


def test_a_missing_openvino_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_openvino.source(), "_PACKAGE", "no_such_package")
    assert not report_on("openvino").works
    assert engine_openvino.install_command() in report_on("openvino").detail
