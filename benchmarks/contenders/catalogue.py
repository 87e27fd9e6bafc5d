"""The contenders, as data: which environment, which worker, which files, which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.contenders.protocol import PRESET_STEPS
from edgediffusion.errors import RequestError, choices


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One program with one way of using it.

    environment : a name of ``environments.py``.
    worker : the file beside this one that speaks for it, without its ending.
    files : what it reads, a name of ``models.py``.
    note : what its figures mean that those of the others do not, for the report.
    """

    environment: str
    worker: str
    files: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _edgediffusion(environment: str, device: str, preset: str | None = None) -> Contender:
    instead = f"in the place of {PRESET_STEPS} steps it makes the fewer, cheaper ones of `{preset}`"
    return Contender(
        environment=environment,
        worker="with_edgediffusion",
        files="bundle",
        options={"device": device, "preset": preset},
        note=instead if preset else "",
    )


def _diffusers(**options: Any) -> Contender:
    return Contender(
        environment="diffusers", worker="with_diffusers", files="checkpoint", options=options
    )


def _genai(precision: str | None) -> Contender:
    return Contender(
        environment="openvino-genai",
        worker="with_openvino_genai",
        files="openvino-ir",
        options={"precision": precision},
    )


# Thread counts are each program's own default, one for each physical core. Where a program leaves a
# choice to its users, the settings are those that its documentation recommends for a CPU.
CONTENDERS: Final[Mapping[str, Contender]] = {
    "edgediffusion-cpu": _edgediffusion("edgediffusion", "cpu"),
    "edgediffusion-openvino": _edgediffusion("edgediffusion-openvino", "openvino"),
    "edgediffusion-openvino-fast": _edgediffusion("edgediffusion-openvino", "openvino", "fast"),
    "diffusers-fp32": _diffusers(dtype="float32"),
    "diffusers-bf16": _diffusers(dtype="bfloat16", channels_last=True),
    "diffusers-compile": _diffusers(dtype="float32", channels_last=True, compile=True),
    "optimum-onnx": Contender(environment="optimum-onnx", worker="with_optimum_onnx", files="onnx"),
    "openvino-genai": _genai(None),  # OpenVINO's own choice: bf16 where the CPU has it
    "openvino-genai-fp32": _genai("f32"),
    "stable-diffusion-cpp": Contender(
        environment="stable-diffusion-cpp",
        worker="with_stable_diffusion_cpp",
        files="checkpoint",
    ),
}

REFERENCE: Final = "diffusers-fp32"
"""Whose picture every other one is compared with."""


def find_contenders(names: Sequence[str]) -> dict[str, Contender]:
    """Look contenders up, all where no name is given; raises RequestError with near matches."""
    for name in names:
        if name not in CONTENDERS:
            raise RequestError(f"unknown contender {name!r}: {choices(name, CONTENDERS)}")
    return {name: CONTENDERS[name] for name in names or CONTENDERS}
