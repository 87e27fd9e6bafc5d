"""The version of NVIDIA's driver: two drivers of one CUDA version compile kernels otherwise.

Linux says it in a file; elsewhere NVIDIA's management library (nvml.h), which comes with the
driver, is asked. Some drivers, like a Jetson's, have neither.
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any, Final

LIBRARY: Final = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_FILE: Final = Path("/proc/driver/nvidia/version")
_VERSION: Final = re.compile(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s")
_LENGTH: Final = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


def driver_version() -> str | None:
    """Return the version like ``580.65.06``; None where nothing tells it."""
    return _from_linux() or _from_nvml()


def _from_linux() -> str | None:
    try:
        found = _VERSION.search(_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found and found[1]


def _from_nvml() -> str | None:
    try:
        library = _open(LIBRARY)
    except OSError:
        return None
    if library.nvmlInit_v2():
        return None
    text = ctypes.create_string_buffer(_LENGTH)
    try:
        failed = library.nvmlSystemGetDriverVersion(text, _LENGTH)
    finally:
        library.nvmlShutdown()
    return None if failed else text.value.decode("ascii", errors="replace")


def _open(name: str) -> Any:
    return ctypes.CDLL(name)
