"""Who takes part in benchmarks/gpu.py, each as a call that returns when its work is done.

This runtime's contenders get NumPy arrays and give them back: the copies to the GPU and from it are
in their time. PyTorch's have their inputs on the GPU already and leave their outputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import torch
from numpy.typing import NDArray

from benchmarks.gpu_graphs import Subject
from benchmarks.gpu_pieces import OURS, RIVAL
from edgediffusion.engine import BACKENDS, Engine, EngineOptions, open_engine
from edgediffusion.engine_cuda import CudaOptions, open_cuda
from edgediffusion_export.graphs import Traced

Call = Callable[[], object]


@contextmanager
def _cuda(options: CudaOptions, fused: bool, subject: Subject) -> Iterator[Call]:
    spec = subject.spec if fused else msgspec.structs.replace(subject.spec, devices={})
    backend = open_cuda(spec, subject.path, EngineOptions(), options)
    with Engine(spec, "cuda", backend, backend.arithmetic) as engine:
        yield partial(_call, engine, subject.inputs)


@contextmanager
def _native(device: str, subject: Subject) -> Iterator[Call]:
    with open_engine(subject.spec, subject.folder, device) as engine:
        yield partial(_call, engine, subject.inputs)


def _call(engine: Engine, inputs: Mapping[str, Any]) -> object:
    return engine(**inputs)


@contextmanager
def _torch(compiled: bool, place: str, subject: Subject) -> Iterator[Call]:
    """The module as it is or compiled, channels-last, as its users run it."""
    module = subject.module.to(place, memory_format=torch.channels_last)
    traced: Any = Traced(subject.network, module).eval()
    if compiled:
        traced = torch.compile(traced, mode="max-autotune", fullgraph=True)  # with CUDA graphs
    inputs = [_tensor(subject.inputs[t.name], place) for t in subject.spec.inputs]

    def run() -> None:
        with torch.no_grad():
            traced(*inputs)
        if place == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):  # compiling, warming up, capturing
        run()
    try:
        yield run
    finally:
        torch.compiler.reset()


def _tensor(array: NDArray[Any], place: str) -> torch.Tensor:
    made = torch.from_numpy(array).to(place)
    return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made


@dataclass(frozen=True)
class Contender:
    """A name in the tables, and what opens it; the opener raises where it cannot take part."""

    name: str
    open: Callable[[Subject], Any]


def contenders(place: str = "cuda") -> Iterator[Contender]:
    """Yield all that may take part; ``place`` is where PyTorch computes."""
    yield Contender(OURS, partial(_cuda, CudaOptions(), True))
    yield Contender("cuda, not captured", partial(_cuda, CudaOptions(capture=False), True))
    yield Contender("cuda, captured, plain graph", partial(_cuda, CudaOptions(), False))
    for device in ("tensorrt", "tensorrt-rtx"):
        if device in BACKENDS:
            yield Contender(device, partial(_native, device))
    yield Contender(RIVAL, partial(_torch, True, place))
    yield Contender("torch eager", partial(_torch, False, place))
