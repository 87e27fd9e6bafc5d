"""The TensorRT for RTX backend: engines that the export built, finished on the GPU that runs them.

A plan in the bundle is for kinds of GPU. Its kernels are compiled when it is first used on a GPU,
which takes seconds; they are kept in the engine cache for the next start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgediffusion.builds import keep_build, read_build
from edgediffusion.byte_sizes import say_bytes
from edgediffusion.cuda_runtime import open_cuda
from edgediffusion.engine import EngineOptions
from edgediffusion.engine_tensorrt import libraries_on, open_cached
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.fingerprint import engine_facts
from edgediffusion.gpu import Gpu
from edgediffusion.manifest import GraphSpec, PlanSpec
from edgediffusion.tensorrt_build import compute_capabilities
from edgediffusion.tensorrt_library import TENSORRT_RTX, message_log
from edgediffusion.tensorrt_run import Machine, TensorRtBackend, mapped, open_plan

_FILE: Final = "kernels.cache"
_EXPORT: Final = "edgediffusion export ... --precision fp16 --target tensorrt-rtx"


def open_backend(
    spec: GraphSpec, path: Path, _: EngineOptions, content: str | None = None
) -> TensorRtBackend:
    """Load the plan that the bundle has for this GPU beside the graph at ``path``.

    Raises DeviceError where TensorRT for RTX, a GPU or a fitting plan is missing or the memory is
    too small, EngineError for a plan that does not load or run.
    """
    machine = Machine(TENSORRT_RTX.load(), open_cuda(TENSORRT_RTX))
    plan = choose_plan(machine, spec)
    finisher = Finisher(machine, spec, path, path.parents[1] / plan.file)
    check_validity(machine, plan, finisher.plan)
    if content is None:
        return finisher.build()
    facts = engine_facts(content, TENSORRT_RTX.device, spec.precision, EngineOptions())
    return open_cached(finisher, facts | {"plan": plan.file})


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions. Raises DeviceError."""
    return libraries_on(Machine(TENSORRT_RTX.load(), open_cuda(TENSORRT_RTX)))


def choose_plan(machine: Machine, spec: GraphSpec) -> PlanSpec:
    """Return the plan of a graph for the GPU at hand. Raises DeviceError saying what there is."""
    gpu = machine.cuda.gpu
    known = compute_capabilities(machine.trt)
    if gpu.compute_capability not in known:
        raise DeviceError(
            f"device 'tensorrt-rtx' does not run on {_say(gpu)}, only on {', '.join(known)}: use "
            "device 'tensorrt' or 'cuda'"
        )
    for plan in spec.plans:
        if gpu.compute_capability in plan.compute_capabilities:
            return plan
    have = dict.fromkeys(each for plan in spec.plans for each in plan.compute_capabilities)
    if not have:
        raise DeviceError(f"the bundle has no engine of {spec.file} for tensorrt-rtx: {_EXPORT}")
    raise DeviceError(
        f"the bundle has engines of {spec.file} for compute capability {', '.join(have)}, not for "
        f"{_say(gpu)}: {_EXPORT} --compute-capability {gpu.compute_capability}"
    )


def check_validity(machine: Machine, plan: PlanSpec, path: Path) -> None:
    """Ask the library whether it can load the plan at ``path``. Raises DeviceError."""
    trt, gpu = machine.trt, machine.cuda.gpu
    runtime = trt.Runtime(message_log(trt))
    with mapped(path) as data:
        validity, found = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity != trt.EngineValidity.INVALID:
        return
    bits = trt.EngineInvalidityDiagnostics
    reasons = {
        bits.VERSION_MISMATCH: f"it was built with TensorRT for RTX {plan.version}, installed is "
        f"{trt.__version__}: install that version, or {_EXPORT}",
        bits.UNSUPPORTED_CC: f"it is not for {_say(gpu)}: {_EXPORT} --compute-capability "
        f"{gpu.compute_capability}",
        bits.OLD_CUDA_DRIVER: f"the NVIDIA driver, for CUDA {gpu.driver}, is too old: update it",
        bits.OLD_CUDA_RUNTIME: f"its CUDA is too old: {TENSORRT_RTX.install} --upgrade",
        bits.INSUFFICIENT_GPU_MEMORY: f"the GPU has too little memory: {say_bytes(gpu.memory)}",
        bits.MALFORMED_ENGINE: "it is no engine of this library: copy or export the bundle again",
    }
    told = [text for bit, text in reasons.items() if found & int(bit)]
    raise DeviceError(
        f"{path} cannot be used: {'; '.join(told) or 'CUDA is not well, look at nvidia-smi'}"
    )


@dataclass(frozen=True)
class Finisher:
    """How a plan is finished for the GPU, and what of that is kept and loaded again."""

    machine: Machine
    spec: GraphSpec
    path: Path
    plan: Path

    def build(self, folder: Path | None = None) -> TensorRtBackend:
        """Compile the plan's kernels; leave them in ``folder`` for ``load``."""
        kernels = _Kernels()
        backend = self._open(kernels)
        try:
            if folder is not None:
                backend.build = keep_build(folder, _FILE, kernels.content())
        except BaseException:
            backend.close()
            raise
        return backend

    def load(self, folder: Path) -> TensorRtBackend:
        """Open the plan with the kernels that ``build`` left; EngineError if they don't fit."""
        with mapped(folder / _FILE) as data:
            kernels = _Kernels(bytes(data))
        build = read_build(folder)
        backend = self._open(kernels)
        backend.build = build
        return backend

    def _open(self, kernels: _Kernels) -> TensorRtBackend:
        needed = self.plan.stat().st_size
        self.machine.cuda.require_memory(needed, f"loading {self.spec.file}")
        with mapped(self.plan) as data:
            return open_plan(self.machine, data, self.spec, kernels.context)


class _Kernels:
    """The kernels that are compiled on the GPU: ``known`` from an earlier time, or new ones.

    It keeps the library's objects for as long as the execution context, which may look at them.
    """

    def __init__(self, known: bytes = b"") -> None:
        self._known = known
        self._config: Any = None
        self._cache: Any = None

    def context(self, engine: Any) -> Any:
        """Make an execution context; raises EngineError for kernels of another machine."""
        self._config = config = engine.create_runtime_config()
        self._cache = config.create_runtime_cache()
        if self._known and not self._cache.deserialize(self._known):
            raise EngineError("the kernels in the engine cache are of another machine")
        config.set_runtime_cache(self._cache)
        return engine.create_execution_context(config)

    def content(self) -> bytes:
        """Return all kernels; complete once the engine ran."""
        return bytes(self._cache.serialize())


def _say(gpu: Gpu) -> str:
    return f"{gpu.name}, which has compute capability {gpu.compute_capability}"
