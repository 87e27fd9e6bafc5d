"""Who takes part in benchmarks/gpu.py, each as a call that returns when its work is done.

This runtime's contenders get NumPy arrays and give them back: the copies to the GPU and from it are
in their time. PyTorch's have their inputs on the GPU already and leave their outputs there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
import torch
from numpy.typing import NDArray

from benchmarks.gpu_graphs import Subject, with_plan
from benchmarks.gpu_pieces import BARE, EAGER, OURS, RIVAL, UNCAPTURED, UNFUSED
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.engine_cuda import CudaOptions, open_cuda
from edgediffusion.tensorrt_library import TENSORRT, TENSORRT_RTX
from edgediffusion_export.graphs import Traced

COMPILER: Final = "inductor"

Given = TypeVar("Given")
Call = Callable[[], object]
OpenEngine = Callable[[Subject], Engine]


@dataclass(frozen=True)
class Contender(Generic[Given]):
    """A name in the tables, and what opens it; the opener raises where it cannot take part.

    open : gets a network's subject, or those of all parts of a picture.
    held : the bytes of its memory that others before it have put on the GPU.
    """

    name: str
    open: Callable[[Given], AbstractContextManager[Call]]
    held: Callable[[Given], int] = lambda given: 0


def contenders(place: str = "cuda") -> Iterator[Contender[Subject]]:
    """Yield all that may take part; ``place`` is where PyTorch computes."""
    for name, opening in engines():
        yield Contender(name, partial(_ours, opening))
    yield Contender(UNFUSED, partial(_ours, _open_plain))
    yield Contender(BARE, _bare)
    held = partial(held_weights, place=place)
    yield Contender(RIVAL, partial(_torch, True, place), held)
    yield Contender(EAGER, partial(_torch, False, place), held)


def engines() -> Iterator[tuple[str, OpenEngine]]:
    """Yield this runtime's ways to run a network, each with what opens it."""
    yield OURS, partial(_open_cuda, CudaOptions())
    yield UNCAPTURED, partial(_open_cuda, CudaOptions(capture=False))
    yield TENSORRT.device, _open_tensorrt
    yield TENSORRT_RTX.device, _open_tensorrt_rtx


def traced(subject: Subject, place: str, *, compiled: bool) -> Any:
    """A subject's module on ``place``, channels-last as its users run it, compiled or as it is.

    What is compiled is compiled for its own shapes, as our graphs are: without ``dynamic=False``
    the second shape that one process compiles is traced for all shapes, and runs slower.
    """
    module = subject.module.to(place, memory_format=torch.channels_last)
    made: Any = Traced(subject.network, module).eval()
    if not compiled:
        return made
    return torch.compile(
        made, backend=COMPILER, mode="max-autotune", fullgraph=True, dynamic=False
    )  # with CUDA graphs


def held_weights(*subjects: Subject, place: str) -> int:
    """The bytes of the modules' weights that are on ``place`` already."""
    tensors = (each for s in subjects for each in (*s.module.parameters(), *s.module.buffers()))
    return sum(each.nbytes for each in tensors if each.device.type == place)


def _open_cuda(options: CudaOptions, subject: Subject) -> Engine:
    backend = open_cuda(subject.spec, subject.path, EngineOptions(), options)
    return Engine(subject.spec, "cuda", backend, backend.arithmetic)


def _open_plain(subject: Subject) -> Engine:
    plain = msgspec.structs.replace(subject.spec, devices={})
    return _open_cuda(CudaOptions(), replace(subject, spec=plain))


def _open_tensorrt(subject: Subject) -> Engine:
    return open_engine(subject.spec, subject.folder, TENSORRT.device)


def _open_tensorrt_rtx(subject: Subject) -> Engine:
    return open_engine(with_plan(subject), subject.folder, TENSORRT_RTX.device)


@contextmanager
def _ours(opening: OpenEngine, subject: Subject) -> Iterator[Call]:
    with opening(subject) as engine:
        yield partial(_call, engine, subject.inputs)


def _call(engine: Engine, inputs: Mapping[str, Any]) -> object:
    return engine(**inputs)


@contextmanager
def _bare(subject: Subject) -> Iterator[Call]:
    """The captured graph alone: launched on what its buffers hold, waited for, nothing copied."""
    backend = open_cuda(subject.spec, subject.path, EngineOptions(), CudaOptions())
    try:
        yield backend.replay
    finally:
        backend.close()


@contextmanager
def _torch(compiled: bool, place: str, subject: Subject) -> Iterator[Call]:
    module = traced(subject, place, compiled=compiled)
    inputs = [_tensor(subject.inputs[t.name], place) for t in subject.spec.inputs]

    def run() -> None:
        with torch.no_grad():
            module(*inputs)
        if place == "cuda":
            torch.cuda.synchronize()

    try:
        for _ in range(3):  # compiling, warming up, capturing
            run()
        yield run
    finally:
        torch.compiler.reset()


def _tensor(array: NDArray[Any], place: str) -> torch.Tensor:
    made = torch.from_numpy(array).to(place)
    return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made
