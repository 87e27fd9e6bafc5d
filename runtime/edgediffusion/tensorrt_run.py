"""Run an engine of TensorRT or TensorRT for RTX: NumPy arrays in, NumPy arrays out.

Buffers on the GPU have fixed addresses for the life of the engine, so after one warm-up the whole
graph is captured as a CUDA graph, and a call launches that instead of each kernel by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.cuda_runtime import Cuda
from edgediffusion.engine import Arithmetic
from edgediffusion.errors import EngineError
from edgediffusion.manifest import GraphSpec, TensorSpec
from edgediffusion.switches import CUDA_GRAPH, is_on
from edgediffusion.tensorrt_library import message_log

NOT_CAPTURED: Final = "could not be captured as a CUDA graph, its kernels are launched one by one"

MakeContext = Callable[[Any], Any]
"""From an engine to its execution context."""


@dataclass(frozen=True)
class Machine:
    """What runs engines: a module of TensorRT, and the GPU."""

    trt: ModuleType
    cuda: Cuda


def plain_context(engine: Any) -> Any:
    """Make an execution context with all that is its default."""
    return engine.create_execution_context()


class TensorRtBackend:
    """An engine with its buffers on the GPU. ``data`` is a plan; it is not needed afterwards.

    build : the name of what the engine cache keeps of it; None where it keeps nothing.
    note : what is not as it should be, and still gives right results.

    Raises EngineError where the plan does not load or is not what ``spec`` says, DeviceError for
    too little memory.
    """

    def __init__(
        self,
        machine: Machine,
        data: Any,
        spec: GraphSpec,
        context: MakeContext = plain_context,
    ) -> None:
        self.arithmetic: Arithmetic = spec.precision
        self.build: str | None = None
        self.note: str | None = None
        self._cuda, self._spec = machine.cuda, spec
        self._log = message_log(machine.trt)
        self._graph: Any | None = None
        self._used = ExitStack()
        try:
            self._load(machine.trt, data)
            self._prepare(context)
        except BaseException:
            self.close()
            raise

    def warm_up(self) -> None:
        """Run once on zeros, which compiles what is compiled late, then capture the graph.

        Where it cannot be captured, which ``note`` then says, or shall not, calls go on to put the
        kernels on the stream one by one.
        """
        self._enqueue_or_raise()
        self._cuda.synchronize(self._stream)
        if not is_on(CUDA_GRAPH, default=True):
            return
        self._graph = self._cuda.capture(self._stream, self._enqueue)
        if self._graph is None:
            self.note = NOT_CAPTURED
        else:
            self._used.callback(self._cuda.destroy_graph, self._graph)

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute all outputs. Raises EngineError with the library's own words."""
        held = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in held.items():
            self._cuda.upload(self._buffers[name], array, self._stream)
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue_or_raise()
        outputs = [np.empty(tensor.shape, tensor.dtype) for tensor in self._spec.outputs]
        for tensor, out in zip(self._spec.outputs, outputs, strict=True):
            self._cuda.download(out, self._buffers[tensor.name], self._stream)
        self._cuda.synchronize(self._stream)
        return outputs

    def rest(self) -> None:
        """Buffers stay where they are: a captured run works in them."""

    def close(self) -> None:
        """Free the graph, the buffers, the context and the engine, in this order."""
        self._used.close()

    def when_closed(self, call: Callable[[], None]) -> None:
        """Call something once the memory is free."""
        after = ExitStack()
        after.callback(call)
        after.push(self._used.pop_all())
        self._used = after

    def _load(self, trt: ModuleType, data: Any) -> None:
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        self._used.callback(self._forget)
        if self._engine is None:
            raise EngineError(f"{self._spec.file}: its engine does not load: {self._log.why()}")
        _check_signature(trt, self._engine, self._spec)

    def _prepare(self, context: MakeContext) -> None:
        spec = self._spec
        tensors = (*spec.inputs, *spec.outputs)
        needed = int(self._engine.device_memory_size_v2) + sum(map(_bytes_of, tensors))
        self._cuda.require_memory(needed, f"running {spec.file}")
        self._make_context, self._context = context, context(self._engine)
        if self._context is None:
            raise EngineError(f"{spec.file} gets no execution context: {self._log.why()}")
        self._stream = self._cuda.create_stream()
        self._used.callback(self._cuda.destroy_stream, self._stream)
        self._buffers = {tensor.name: self._bind(tensor) for tensor in tensors}

    def _bind(self, tensor: TensorSpec) -> int:
        address = self._cuda.allocate(_bytes_of(tensor))
        self._used.callback(self._cuda.free, address)
        self._context.set_tensor_address(tensor.name, address)
        return address

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(int(self._stream)))

    def _enqueue_or_raise(self) -> None:
        if not self._enqueue():
            raise EngineError(f"{self._spec.file} failed in TensorRT: {self._log.why()}")

    def _forget(self) -> None:
        """Drop the library's objects, those that stand on others first."""
        self._context = None
        self._make_context = plain_context
        self._engine = None
        self._runtime = None


def open_plan(
    machine: Machine, data: Any, spec: GraphSpec, context: MakeContext = plain_context
) -> TensorRtBackend:
    """Load a plan and warm it up. Raises like ``TensorRtBackend``."""
    backend = TensorRtBackend(machine, data, spec, context)
    try:
        backend.warm_up()
    except BaseException:
        backend.close()
        raise
    return backend


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """Give a plan's bytes without copying them. Raises EngineError for one that cannot be read."""
    with ExitStack() as held:
        try:
            file = held.enter_context(path.open("rb"))
            data = held.enter_context(mmap(file.fileno(), 0, access=ACCESS_READ))
        except (OSError, ValueError) as error:  # mmap has no word for an empty file but ValueError
            raise EngineError(f"{path} cannot be read: {error}") from error
        yield data


def _check_signature(trt: ModuleType, engine: Any, spec: GraphSpec) -> None:
    """Raise EngineError if the inputs and outputs of an engine are not those of ``spec``."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    got = {
        f"{name} {np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name} "
        f"{tuple(engine.get_tensor_shape(name))}"
        for name in names
    }
    wanted = {f"{t.name} {t.dtype} {t.shape}" for t in (*spec.inputs, *spec.outputs)}
    if got != wanted:
        raise EngineError(
            f"{spec.file}: its engine is not of the graph that the manifest describes:\n"
            f"  engine has {', '.join(sorted(got))}\n"
            f"  manifest says {', '.join(sorted(wanted))}"
        )


def _bytes_of(tensor: TensorSpec) -> int:
    return int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
