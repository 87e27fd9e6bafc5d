"""Stand-ins for an NVIDIA driver and for sessions on a GPU, for machines without one."""

from __future__ import annotations

from typing import Any

from edgediffusion.gpu import Gpu

A_GPU = Gpu("NVIDIA Pretend 4090", (8, 9), 24 * 2**30, (13, 0))


class FakeDriver:
    """The calls of the CUDA Driver API that we use, answered from a Gpu.

    codes : error codes by the name of the call; 0 is success.
    """

    def __init__(self, gpu: Gpu = A_GPU, free: int = 0, codes: dict[str, int] | None = None):
        self.gpu, self.free, self.codes = gpu, free, codes or {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if code := self.codes.get(name, 0):
                return code
            getattr(self, f"_{name}", lambda *rest: None)(*arguments)
            return 0

        if name.startswith("_"):
            raise AttributeError(name)
        return call

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        name.value = self.gpu.name.encode()

    def _cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> None:
        memory._obj.value = self.gpu.memory

    def _cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 1000 * self.gpu.cuda[0] + 10 * self.gpu.cuda[1]

    def _cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> None:
        value._obj.value = self.gpu.capability[{75: 0, 76: 1}[number]]

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = self.free, self.gpu.memory

    def _cuGetErrorName(self, code: int, text: Any) -> None:
        text._obj.value = {803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}.get(code)


class CapturingSession:
    """A session of ONNX Runtime that notes with which run options it was called."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.graph_ids: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self.graph_ids.append(options and options.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(binding, options)
