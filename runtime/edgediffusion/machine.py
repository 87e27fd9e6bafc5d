"""Facts about the machine and this process, for benchmarks and reports."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

# The instruction sets that decide which kernels run.
_TELLING_FLAGS: Final = (
    "avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16",
    "amx_bf16", "amx_int8", "neon", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
_LIBRARIES: Final = (
    "edgediffusion", "numpy", "onnxruntime", "onnxruntime-ep-openvino", "openvino", "tokenizers",
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings",
)  # fmt: skip


def machine_facts() -> dict[str, Any]:
    """Return CPU, cores, memory, system and library versions as JSON-ready data."""
    from edgediffusion.cpu import read_cpu  # benchmarks load this file alone, without the package

    model, flags, _ = read_cpu()
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _versions(),
    }


def peak_memory_mib() -> float | None:
    """Return the largest resident memory of this process so far, in MiB, where the OS tells."""
    if (peak := _status_mib("VmHWM")) is not None:
        return peak
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_memory_mib() -> float | None:
    """Return the resident memory of this process, mapped pages included, in MiB; only on Linux."""
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
