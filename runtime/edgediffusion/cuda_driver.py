"""What NVIDIA's driver says of the GPU, asked through the driver's own library.

The driver is there or not, whatever Python packages are installed, so it is asked first: its
absence explains every other failure. The calls are those of the CUDA Driver API (cuda.h).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

from edgediffusion.errors import DeviceError
from edgediffusion.gpu import Gpu, cuda_version

LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_DRIVERS: Final = "https://www.nvidia.com/drivers"


def read_gpu() -> Gpu:
    """Ask the driver for its first GPU. Raises DeviceError where there is no driver or no GPU."""
    library = _load()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    memory, version = ctypes.c_size_t(), ctypes.c_int()
    _call(library, "cuDeviceGet", ctypes.byref(device), 0)
    _call(library, "cuDeviceGetName", name, len(name), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    capability = (_attribute(library, _MAJOR, device), _attribute(library, _MINOR, device))
    return Gpu(
        name.value.decode(errors="replace"), capability, memory.value, cuda_version(version.value)
    )


def free_memory() -> int:
    """Return the bytes that are free on the first GPU. Raises DeviceError."""
    library = _load()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _call(library, "cuDeviceGet", ctypes.byref(device), 0)
    _call(library, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call(library, "cuCtxPushCurrent_v2", context)
        try:
            _call(library, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            _call(library, "cuCtxPopCurrent_v2", ctypes.byref(context))
    finally:
        _call(library, "cuDevicePrimaryCtxRelease_v2", device)
    return free.value


def _load() -> Any:
    """Load and start the driver's library."""
    try:
        library = _open(LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"device 'cuda' needs NVIDIA's driver, and there is none here ({error}): install it "
            f"from {_DRIVERS}, or use device 'cpu'"
        ) from error
    _call(library, "cuInit", 0)
    return library


def _open(name: str) -> Any:
    return ctypes.CDLL(name)


def _attribute(library: Any, number: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(library, "cuDeviceGetAttribute", ctypes.byref(value), number, device)
    return value.value


def _call(library: Any, name: str, *arguments: Any) -> None:
    """Call the driver; raises DeviceError with its own name for what went wrong."""
    code = int(getattr(library, name)(*arguments))
    if code == _NO_DEVICE:
        raise DeviceError(
            "device 'cuda': NVIDIA's driver is installed and sees no GPU. Look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES, or use device 'cpu'"
        )
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(text))
        said = text.value.decode() if text.value else f"error {code}"
        raise DeviceError(
            f"device 'cuda': NVIDIA's driver fails at {name} with {said}. Does nvidia-smi work? "
            f"Restart the machine after an update of the driver, or install it anew from {_DRIVERS}"
        )
