"""The TensorRT backend: engines built on the GPU that runs them, and kept in the engine cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from edgediffusion.builds import keep_build, read_build
from edgediffusion.cuda_runtime import open_cuda
from edgediffusion.engine import EngineOptions
from edgediffusion.engine_cache import engine_cache, load_kept, load_or_build
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.fingerprint import engine_facts
from edgediffusion.graph_bytes import read_graph_bytes
from edgediffusion.manifest import STAYS_FP32, GraphSpec
from edgediffusion.nvidia_driver import driver_version
from edgediffusion.one_builder import one_builder
from edgediffusion.switches import TENSORRT_REFIT, is_on
from edgediffusion.tensorrt_build import Plan, build_plan
from edgediffusion.tensorrt_faults import explain_build
from edgediffusion.tensorrt_library import TENSORRT
from edgediffusion.tensorrt_refit import Refit
from edgediffusion.tensorrt_run import (
    Machine,
    MakeContext,
    TensorRtBackend,
    mapped,
    open_plan,
    plain_context,
)
from edgediffusion.timing_cache import TimingCache

_FILE: Final = "engine.plan"
_ANY: Final = EngineOptions()
"""The number of threads says nothing about an engine on a GPU."""


def open_backend(
    spec: GraphSpec, path: Path, _: EngineOptions, content: str | None = None
) -> TensorRtBackend:
    """Load the engine of the graph at ``path`` from the engine cache, or build it there first.

    Raises DeviceError where TensorRT or a GPU is missing, the graph is not fp16 or the memory is
    too small, EngineError for a graph that does not build or run.
    """
    require_fp16(spec)
    machine = Machine(TENSORRT.load(), open_cuda(TENSORRT))
    timing = TimingCache(engine_cache(), libraries_on(machine))
    builder = Builder(machine, spec, path, timing, is_on(TENSORRT_REFIT, default=False))
    if content is None:
        return builder.build()
    facts = engine_facts(content, TENSORRT.device, spec.precision, _ANY)
    return open_cached(builder, facts | builder.facts)


class Cacheable(Protocol):
    """What opens a graph, and keeps the work for the next time."""

    @property
    def spec(self) -> GraphSpec:
        """The graph."""

    @property
    def path(self) -> Path:
        """Its ONNX file in the bundle."""

    def build(self, folder: Path | None = None) -> TensorRtBackend:
        """Open it the first time; leave in ``folder`` what ``load`` needs."""

    def load(self, folder: Path) -> TensorRtBackend:
        """Open it with what ``build`` left in ``folder``; EngineError where that does not fit."""


def open_cached(builder: Cacheable, facts: Mapping[str, str]) -> TensorRtBackend:
    """Open a graph from the engine cache, or build it there; one process at a time builds."""
    cache, label = engine_cache(), f"{builder.path.parents[1].name}/{builder.spec.file}"
    opened = load_kept(cache, facts, builder.load)
    if opened is None:
        with one_builder(cache):
            opened = load_or_build(cache, facts, label, builder.load, builder.build)
    backend, release = opened
    backend.when_closed(release)
    return backend


@dataclass(frozen=True)
class Builder:
    """How an engine of the graph at ``path`` is built, kept and loaded again.

    refit : keep the engine without its weights, which the graph has.
    """

    machine: Machine
    spec: GraphSpec
    path: Path
    timing: TimingCache
    refit: bool = False

    @property
    def facts(self) -> dict[str, str]:
        """What the plan depends on beside the graph and the machine."""
        return {"weights": "those of the bundle"} if self.refit else {}

    def build(self, folder: Path | None = None) -> TensorRtBackend:
        """Build the engine and leave its plan in ``folder`` for ``load``."""
        build = None if folder is None else keep_build(folder, _FILE, self._plan.data)
        return self._open(self._plan.data, build)

    def load(self, folder: Path) -> TensorRtBackend:
        """Load what ``build`` left in ``folder``."""
        with mapped(folder / _FILE) as data:
            return self._open(data, read_build(folder))

    @cached_property
    def _plan(self) -> Plan:
        """Built once, though the cache may fail and ask again."""
        known = self.timing.read()
        try:
            plan = build_plan(self.machine.trt, self.path, timing_cache=known, stripped=self.refit)
        except EngineError as error:
            raise explain_build(self.machine, self.path, error) from error
        self.timing.keep(plan.timing_cache)
        return plan

    def _open(self, data: Any, build: str | None) -> TensorRtBackend:
        needed = memoryview(data).nbytes
        context: MakeContext = plain_context
        if self.refit:
            needed += read_graph_bytes(self.path).weights
            context = Refit(self.machine.trt, self.path).context
        self.machine.cuda.require_memory(needed, f"loading {self.spec.file}")
        backend = open_plan(self.machine, data, self.spec, context)
        backend.build = build
        return backend


def require_fp16(spec: GraphSpec) -> None:
    """Raise DeviceError for a graph that is fp32 for no reason: a GPU would crawl, unnoticed."""
    if spec.precision == "fp32" and not (spec.note or "").startswith(STAYS_FP32):
        raise DeviceError(
            f"{spec.file} computes in fp32, devices of TensorRT are for fp16: export the "
            "checkpoint again with --precision fp16, or use device 'cpu'"
        )


def libraries() -> dict[str, str]:
    """Return the libraries that compute here, with their versions. Raises DeviceError."""
    return libraries_on(Machine(TENSORRT.load(), open_cuda(TENSORRT)))


def libraries_on(machine: Machine) -> dict[str, str]:
    """Return what an engine depends on beside its graph: library, driver and GPU."""
    gpu = machine.cuda.gpu
    return {
        machine.trt.__name__: machine.trt.__version__,
        "cuda-driver": ", ".join(filter(None, (gpu.driver, driver_version()))),
        "gpu": f"{gpu.name}, compute capability {gpu.compute_capability}",
    }
