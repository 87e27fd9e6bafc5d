"""The few calls of the CUDA runtime that an engine needs, through cuda-python, as exceptions.

Everything happens on the first GPU that CUDA shows; ``CUDA_VISIBLE_DEVICES`` says which that is.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.byte_sizes import say_bytes
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.gpu import Gpu, cuda_version, say_version
from edgediffusion.tensorrt_library import Library

_MODULE: Final = "cuda.bindings.runtime"
_FIRST: Final = 0


class Cuda:
    """The first GPU. ``api`` is cuda-python's module of the CUDA runtime.

    Raises DeviceError for device ``device`` where there is no driver or no GPU.
    """

    def __init__(self, api: ModuleType, device: str) -> None:
        self._api = api
        self._require_gpu(device)
        properties = self._call("cudaGetDeviceProperties", _FIRST)
        self.gpu = Gpu(
            name=bytes(properties.name).split(b"\0")[0].decode(),
            capability=(properties.major, properties.minor),
            memory=int(properties.totalGlobalMem),
            cuda=cuda_version(self._call("cudaDriverGetVersion")),
        )

    def require_memory(self, needed: int, what: str) -> None:
        """Raise DeviceError unless ``needed`` bytes are free; ``what`` needs them."""
        free, _ = self._call("cudaMemGetInfo")
        if needed > free:
            raise self.too_little_memory(f"{what} needs {say_bytes(needed)}")

    def too_little_memory(self, needs: str) -> DeviceError:
        """Make the error with the figures: ``needs`` says what needs how much."""
        free, total = self._call("cudaMemGetInfo")
        return DeviceError(
            f"{needs} of GPU memory, {self.gpu.name} has {say_bytes(free)} free of "
            f"{say_bytes(total)}: close what else uses it, export a smaller --size, or use device "
            "'cpu'"
        )

    def allocate(self, size: int) -> int:
        """Return the address of ``size`` bytes on the GPU, all zero."""
        address = self._call("cudaMalloc", size)
        self._call("cudaMemset", address, 0, size)
        self._call("cudaDeviceSynchronize")
        return int(address)

    def free(self, address: int) -> None:
        """Give back what ``allocate`` gave."""
        self._call("cudaFree", address)

    def create_stream(self) -> Any:
        """Return a stream that does not wait for the default one."""
        return self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until all that was put on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def upload(self, address: int, array: NDArray[np.generic], stream: Any) -> None:
        """Copy a contiguous array to the GPU, after what is on the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: NDArray[np.generic], address: int, stream: Any) -> None:
        """Fill a contiguous array from the GPU, after what is on the stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any | None:
        """Return what ``work`` puts on the stream as a graph to launch; None where it cannot be."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        with ExitStack() as captured:
            try:
                is_whole = work()
            finally:
                ended, graph = self._api.cudaStreamEndCapture(stream)
                if not int(ended):
                    captured.callback(self._call, "cudaGraphDestroy", graph)
            if int(ended) or not is_whole:
                self._api.cudaGetLastError()  # it would come up at the next call
                return None
            return self._call("cudaGraphInstantiate", graph, 0)

    def launch(self, graph: Any, stream: Any) -> None:
        """Put a captured graph on the stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Give a captured graph back."""
        self._call("cudaGraphExecDestroy", graph)

    def _require_gpu(self, device: str) -> None:
        error, count = self._api.cudaGetDeviceCount()
        if not int(error) and count:
            return
        _, driver = self._api.cudaDriverGetVersion()
        _, needed = self._api.cudaRuntimeGetVersion()
        has, wants = (say_version(cuda_version(number)) for number in (driver, needed))
        if not driver:
            raise DeviceError(
                f"device {device!r} needs an NVIDIA GPU, and no NVIDIA driver is installed here: "
                "install one, or use device 'cpu'"
            )
        if error == self._api.cudaError_t.cudaErrorInsufficientDriver:
            raise DeviceError(
                f"device {device!r} needs a driver for CUDA {wants}, the NVIDIA driver here is for "
                f"CUDA {has}: update it"
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else ""
        raise DeviceError(
            f"device {device!r} finds no NVIDIA GPU{hint}: {self._say(error)}. Look at nvidia-smi, "
            "or use device 'cpu'"
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime; return its one value, or the tuple of several."""
        error, *values = getattr(self._api, name)(*arguments)
        if int(error):
            raise EngineError(
                f"CUDA failed in {name}: {self._say(error)}. Another program may have used up the "
                "GPU or stopped it: look at nvidia-smi, then start again"
            )
        return values[0] if len(values) == 1 else tuple(values)

    def _say(self, error: Any) -> str:
        text = self._api.cudaGetErrorString(error)[1]
        return text.decode() if isinstance(text, bytes) else str(text)


def open_cuda(library: Library) -> Cuda:
    """Return the GPU for a library of TensorRT. Raises DeviceError where there is none."""
    try:
        api = importlib.import_module(_MODULE)
    except ImportError as error:
        raise DeviceError(
            f"device {library.device!r} needs cuda-python, which does not load ({error}): "
            f"{library.install}"
        ) from error
    return Cuda(api, library.device)
