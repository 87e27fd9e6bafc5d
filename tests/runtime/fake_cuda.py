"""A GPU made of host memory: as much of cuda-python's CUDA runtime as edgediffusion calls.

An address is that of real memory, so an engine can read and write there. What is given out is
counted, so that tests see what is never given back. A call that is made to fail is named in
``broken`` with its error.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any


class CudaError(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class FakeGpu:
    """What a test sets up and looks at; ``module()`` is what edgediffusion imports."""

    def __init__(self) -> None:
        self.name, self.capability = "Fake RTX 4090", (8, 9)
        self.memory = 24 << 30
        self.driver = 13020
        self.count_error = CudaError.cudaSuccess
        self.broken: dict[str, CudaError] = {}
        self.held: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.launches = 0

    @property
    def used(self) -> int:
        return sum(len(each) for each in self.held.values() if isinstance(each, ctypes.Array))

    def put(self, work: Callable[[], None]) -> None:
        """Do the work of a kernel now, or when the graph that is being captured is launched."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def module(self) -> ModuleType:
        made = ModuleType("cuda.bindings.runtime")
        calls = {name: call for name, call in vars(type(self)).items() if name.startswith("cuda")}
        for name, call in calls.items():
            setattr(made, name, self._guarded(name, call))
        made.cudaError_t = CudaError  # type: ignore[attr-defined]
        made.cudaStreamNonBlocking = 1  # type: ignore[attr-defined]
        made.cudaMemcpyKind = SimpleNamespace(  # type: ignore[attr-defined]
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2
        )
        made.cudaStreamCaptureMode = SimpleNamespace(  # type: ignore[attr-defined]
            cudaStreamCaptureModeThreadLocal=1
        )
        return made

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any) -> Any:
            if name in self.broken:
                self.capturing = None  # whatever fails ends a capture
                return (self.broken[name], None)
            values = call(self, *arguments)
            return (CudaError.cudaSuccess, *values)

        return guarded

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (1,)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return (self.driver,)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return (13050,)

    def cudaGetErrorString(self, error: CudaError) -> tuple[Any, ...]:
        return (error.name.encode(),)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return ()

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        major, minor = self.capability
        name = self.name.encode().ljust(256, b"\0")
        found = SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=self.memory)
        return (found,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return self.memory - self.used, self.memory

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        block = (ctypes.c_char * size)()
        ctypes.memset(block, 0xFF, size)  # as good as any rubbish
        return (self._hold(block, ctypes.addressof(block)),)

    def cudaMemset(self, address: int, value: int, size: int) -> tuple[Any, ...]:
        assert size == len(self.held[address])
        ctypes.memset(address, value, size)
        return ()

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.held[address]
        return ()

    def cudaMemcpyAsync(
        self, to: int, start: int, size: int, kind: int, stream: Any
    ) -> tuple[Any, ...]:
        assert size == len(self.held[to if kind == 1 else start])
        assert self.capturing is None
        ctypes.memmove(to, start, size)
        return ()

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        return ()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return (self._hold("stream", 1000 + len(self.held)),)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.held[stream]
        return ()

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert self.capturing is None
        return ()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        self.capturing = []
        return ()

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured, self.capturing = self.capturing, None
        return (self._hold(captured, id(captured)),)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        work = list(self.held[graph])
        return (self._hold(work, id(work)),)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.held[graph]
        return ()

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        del self.held[graph]
        return ()

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in self.held[graph]:
            work()
        return ()

    def _hold(self, what: Any, handle: int) -> int:
        assert handle not in self.held
        self.held[handle] = what
        return handle
