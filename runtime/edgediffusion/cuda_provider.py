"""Whether ONNX Runtime's CUDA provider works here, and which part is missing where it doesn't.

ONNX Runtime by itself logs what is missing and goes on with its CPU provider. Here every part is
looked at in the order in which it has to be there: the wheel, the driver, the GPU, the libraries.
"""

from __future__ import annotations

import contextlib
import functools
import io
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnxruntime as ort

from edgediffusion.cuda_driver import read_gpu
from edgediffusion.errors import DeviceError
from edgediffusion.gpu import Gpu

PROVIDER: Final = "CUDAExecutionProvider"
INSTALL: Final = (
    'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu[cuda,cudnn]"'
)
"""Both wheels are the package ``onnxruntime``, and pip does not know that: first none, then one."""

_LIBRARIES: Final = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
_LEAST: Final = {12: (5, 2), 13: (7, 5)}
"""The least compute capability that each major version of CUDA has code for."""
_SILENT, _WARNINGS = 4, 2  # ONNX Runtime's levels
_PROBE: Final = (
    b'\x08\n:6\n\x0b\n\x01x\x12\x01y"\x03Neg\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01'
    b"\x12\x04\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)
"""An ONNX file of one operator: y = -x, one number. The runtime has no onnx to make it with."""

_LOAD: Final = """
import ctypes, sys
import onnxruntime
onnxruntime.preload_dlls()
for name in sys.argv[1:]:
    ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
"""


@functools.cache
def require_cuda() -> Gpu:
    """Return the GPU that the CUDA provider computes on; raises DeviceError naming what is missing.

    Success is remembered, failure is not: it may be mended while the program runs.
    """
    _require_wheel()
    gpu = read_gpu()
    _require_match(gpu)
    preload()
    _require_computing()
    return gpu


def is_installed() -> bool:
    """Tell whether the installed ONNX Runtime has a CUDA provider, working or not."""
    return PROVIDER in ort.get_available_providers()


def preload() -> None:
    """Load CUDA and cuDNN from the ``nvidia-*`` packages, where they are, before the provider does.

    ONNX Runtime prints what it does not find; what is really missing is said by ``require_cuda``.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _require_wheel() -> None:
    if is_installed():
        return
    system, machine = platform.system(), platform.machine()
    if system not in ("Linux", "Windows"):
        raise DeviceError(
            f"device 'cuda' is not offered for {system} on {machine}, only for Linux and Windows: "
            "use device 'cpu'"
        )
    raise DeviceError(
        f"device 'cuda' needs onnxruntime-gpu; the installed onnxruntime {ort.__version__} has no "
        f"CUDA provider: {INSTALL}"
    )


def _require_match(gpu: Gpu) -> None:
    """Hold the driver and the GPU against the CUDA that ONNX Runtime was built with."""
    built = str(ort.cuda_version)
    major = int(built.partition(".")[0])
    if gpu.cuda[0] < major:
        raise DeviceError(
            f"device 'cuda': the driver of the {gpu.name} runs CUDA up to {_say(gpu.cuda)}, "
            f"onnxruntime-gpu {ort.__version__} needs CUDA {built}: update the driver, or install "
            f"an onnxruntime-gpu that is built for CUDA {gpu.cuda[0]}"
        )
    least = _LEAST.get(major, (0, 0))
    if gpu.capability < least:
        raise DeviceError(
            f"device 'cuda': the {gpu.name} has compute capability {_say(gpu.capability)}, CUDA "
            f"{built} needs at least {_say(least)}: use device 'cpu', or an onnxruntime-gpu that "
            "is built for an earlier CUDA"
        )


def _require_computing() -> None:
    """Open a graph of one operator on the provider: being installed is not working."""
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    with _quiet_logger():
        try:
            session = ort.InferenceSession(
                _PROBE, sess_options=options, providers=[PROVIDER], enable_fallback=False
            )
        except Exception as error:
            raise DeviceError(f"device 'cuda' does not start: {error}. {_fix()}") from error
    if session.get_providers()[0] != PROVIDER:
        raise DeviceError(f"device 'cuda' does not start: {missing_library()}. {_fix()}")


def missing_library() -> str:
    """Say why the provider's library does not load, in the system's words.

    Another process loads it: loaded by hand, it could not be used in this one any more.
    """
    folder = Path(ort.__file__).parent / "capi"
    names = ("onnxruntime_providers_shared", "onnxruntime_providers_cuda")
    pattern = "{}.dll" if sys.platform == "win32" else "lib{}.so"
    files = [str(folder / pattern.format(name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, *files], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0 or not lines:
        return "ONNX Runtime's CUDA provider loads and still refuses"
    return lines[-1].partition(": ")[2] or lines[-1]


def _fix() -> str:
    return f"Get the CUDA and cuDNN libraries with {_LIBRARIES}, or use device 'cpu'"


@contextlib.contextmanager
def _quiet_logger() -> Iterator[None]:
    """Keep ONNX Runtime's own log off stderr: the error says it.

    Its level cannot be read, so afterwards it is ONNX Runtime's default.
    """
    ort.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNINGS)


def _say(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
