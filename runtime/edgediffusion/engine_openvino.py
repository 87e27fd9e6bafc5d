"""The OpenVINO backend: ONNX Runtime's plugin where it serves the CPU, else OpenVINO's own package.

Both hold the same OpenVINO, and all of a graph runs in it or it is an error. Only one of them is
loaded in a process: their libraries have the same names.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Final

from edgediffusion import openvino_native, openvino_plugin
from edgediffusion.cpu import computes_bf16
from edgediffusion.engine import Arithmetic, EngineOptions
from edgediffusion.engine_ort import OrtBackend, cpu_path, open_with
from edgediffusion.manifest import GraphSpec

_HINTS: Final[dict[Arithmetic, str]] = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}


def open_backend(
    spec: GraphSpec, path: Path, options: EngineOptions, content: str | None = None
) -> OrtBackend:
    """Compile the graph at ``path`` with OpenVINO, or load what was compiled before.

    Raises DeviceError where OpenVINO is missing or does not load, EngineError for a graph that
    fails, that OpenVINO does not take whole, or that is not what ``spec`` says.
    """
    arithmetic = arithmetic_of(spec)
    compiler = source().compiler(arithmetic, settings_of(arithmetic, options))
    path = cpu_path(spec, path, arithmetic)
    return open_with(compiler, "openvino", spec, path, options, content)


def source() -> ModuleType:
    """Return the module that has OpenVINO for this CPU, installed or not."""
    return openvino_plugin if openvino_plugin.serves_this_cpu() else openvino_native


def arithmetic_of(spec: GraphSpec) -> Arithmetic:
    """Return the numbers that a graph is computed with here.

    OpenVINO left alone takes bf16 on any CPU that has an instruction for it, also where it is no
    faster than fp32, and fails where a lesser CPU is emulated. So it is always told.
    """
    if spec.precision == "int8":
        return "int8"
    return "bf16" if computes_bf16() else spec.precision


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions. Raises DeviceError."""
    found: dict[str, str] = source().libraries()
    return found


def is_installed() -> bool:
    """Tell whether OpenVINO is there for this CPU, without loading it."""
    return bool(source().is_installed())


def install_command() -> str:
    """Return the command that installs what is missing."""
    return str(source().INSTALL)


def describe() -> str:
    """Name OpenVINO's version and where it comes from. Raises DeviceError."""
    return str(source().describe())


def settings_of(arithmetic: Arithmetic, options: EngineOptions) -> dict[str, str]:
    """OpenVINO's own settings for a graph."""
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[arithmetic]}
    if options.threads:
        config["INFERENCE_NUM_THREADS"] = str(options.threads)
    return config
