"""One small engine contract for every backend: names to arrays, checked at the border."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import DeviceError, EngineError, choices
from edgediffusion.manifest import GraphSpec, TensorSpec

Array = NDArray[np.generic]

REPEATABLE: Final = ""
"""The name of a build on devices of which every build computes the same."""

Arithmetic = Literal["fp32", "fp16", "bf16", "tf32", "int8"]
"""With which numbers a graph is computed; the manifest has a gate for each class."""

BACKENDS: Final[Mapping[str, str]] = {
    "cpu": "edgediffusion.engine_ort",
    "openvino": "edgediffusion.engine_openvino",
    "cuda": "edgediffusion.engine_cuda",
    "tensorrt": "edgediffusion.engine_tensorrt",
    "tensorrt-rtx": "edgediffusion.engine_tensorrt_rtx",
}
"""Device name to the module that opens graphs on it. Imported only when asked for."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How engines use the machine.

    threads : threads per graph; 0 means one for each physical core.
    lean : spend time to save memory. Graphs with parts run part by part, each loaded for its turn
        only, and working memory goes back to the system instead of into a pool.
    """

    threads: int = 0
    lean: bool = False

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise DeviceError(f"threads must be at least 0 (0: one per core), got {self.threads}")


class Backend(Protocol):
    """A graph that some library loaded. Inputs are checked before they come here.

    Beside this it may have ``build``, if it chooses its kernels by timing them, and ``note``: see
    ``Engine``.
    """

    arithmetic: Arithmetic

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Compute all outputs, in the order of the graph's spec; the arrays are the caller's."""

    def rest(self) -> None:
        """Give back the memory that runs work in, where that can be had; the next one takes it."""

    def close(self) -> None:
        """Free the memory of the graph."""


class Engine:
    """A loaded graph: ``engine(sample=..., timestep=...)`` returns a dict of output arrays.

    Use it as a context manager. Inputs must have exactly the names, dtypes and shapes of
    ``spec``; outputs are new arrays. ``device`` runs all of the graph, in ``arithmetic``.
    ``build`` names the build that runs: REPEATABLE where all builds compute the same, None for one
    that is not kept. ``note`` says what is slower than it should be, None where nothing is.
    """

    def __init__(
        self, spec: GraphSpec, device: str, backend: Backend, arithmetic: Arithmetic = "fp32"
    ) -> None:
        self.spec = spec
        self.device = device
        self.arithmetic = arithmetic
        self.build: str | None = getattr(backend, "build", REPEATABLE)
        self.note: str | None = getattr(backend, "note", None)
        self._backend: Backend | None = backend

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run the graph once. Raises EngineError on wrong inputs or when the backend fails."""
        if self._backend is None:
            raise EngineError(f"{self.spec.file} is closed: open it again before running it")
        faults = _input_faults(self.spec, inputs)
        if faults:
            raise EngineError(f"{self.spec.file} got wrong inputs:\n  " + "\n  ".join(faults))
        outputs = self._backend.run(inputs)
        return {tensor.name: out for tensor, out in zip(self.spec.outputs, outputs, strict=True)}

    def rest(self) -> None:
        """Give back what only a run needs in memory; the engine stays loaded."""
        if self._backend is not None:
            self._backend.rest()

    def close(self) -> None:
        """Free the graph's memory; closing twice is fine."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_engine(
    spec: GraphSpec,
    folder: Path,
    device: str = "cpu",
    options: EngineOptions | None = None,
    content: str | None = None,
) -> Engine:
    """Load the graph ``spec`` of the bundle in ``folder`` on ``device``.

    ``content`` is a hash of all that the graph is made of (``Bundle.content``); with it, what the
    device compiles is kept in the cache folder. ``auto`` means the device that promises most here;
    only a Pipeline proves it. Raises DeviceError for a device that is unknown or not available,
    EngineError for a graph that does not load or is not what ``spec`` says.
    """
    device = resolve_device(device)
    module = importlib.import_module(BACKENDS[device])
    options = options or EngineOptions()

    def open_backend(graph: GraphSpec) -> Backend:
        known = content and (content if graph is spec else f"{content} {graph.file}")
        opened: Backend = module.open_backend(graph, folder / graph.file, options, known)
        return opened

    if options.lean and spec.parts:
        from edgediffusion.engine_parts import PartsBackend

        backend: Backend = PartsBackend(spec, open_backend)
    else:
        backend = open_backend(spec)
    return Engine(spec, device, backend, backend.arithmetic)


def resolve_device(device: str) -> str:
    """Turn a device's name, or ``auto``, into the name of one that this version can run."""
    if device == "auto":
        from edgediffusion.auto import candidates

        return candidates()[0].device
    if device in BACKENDS:
        return device
    raise DeviceError(f"unknown device {device!r}: {choices(device, ['auto', *BACKENDS])}")


def _input_faults(spec: GraphSpec, inputs: Mapping[str, Array]) -> list[str]:
    """Every mismatch at once: names, dtypes, shapes."""
    expected = {tensor.name: tensor for tensor in spec.inputs}
    faults = [
        f"{name}: is missing, graph takes {_say(expected[name])}"
        for name in expected
        if name not in inputs
    ]
    for name, array in inputs.items():
        tensor = expected.get(name)
        if tensor is None:
            faults.append(f"{name}: unknown, graph takes {', '.join(expected)}")
        elif array.dtype != tensor.dtype or array.shape != tensor.shape:
            got = f"{array.dtype.name} {array.shape}"
            faults.append(f"{name}: got {got}, graph takes {_say(tensor)}")
    return faults


def _say(tensor: TensorSpec) -> str:
    return f"{tensor.dtype} {tensor.shape}"
