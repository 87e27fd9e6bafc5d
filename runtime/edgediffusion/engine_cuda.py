"""The CUDA backend: ONNX Runtime's CUDA provider on an NVIDIA GPU, the whole graph or an error.

Where the bundle has a graph in the provider's own operators (``export --target cuda``), that one
runs; else the plain one. Calls are captured as a CUDA graph and replayed, so that a step costs one
launch instead of some thousand.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import onnxruntime as ort

from edgediffusion.assignment import RECORD, WHOLE, elsewhere, say_operators
from edgediffusion.byte_sizes import say_bytes
from edgediffusion.cuda_driver import free_memory
from edgediffusion.cuda_provider import PROVIDER, require_cuda
from edgediffusion.engine import Arithmetic, EngineOptions
from edgediffusion.engine_bound import BoundBackend
from edgediffusion.engine_ort import check_signature, first_line, session_options
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.external_data import check_locations, external_locations
from edgediffusion.manifest import GraphSpec
from edgediffusion.switches import CUDA_GRAPH, is_on

_PLACE: Final = "cuda"
_AMPERE: Final = (8, 0)
"""The first compute capability with TF32."""
_SILENT: Final = 4  # errors come as exceptions; ONNX Runtime would print them as well
_NO_MEMORY: Final = re.compile(
    r"out of memory|failed to allocate|alloc_failed|allocation_failed|available memory of",
    re.IGNORECASE,
)
"""CUDA's, ONNX Runtime's and cuDNN's words, and those of ONNX Runtime's own limit."""


@dataclass(frozen=True, kw_only=True)
class CudaOptions:
    """How the CUDA provider computes.

    capture : record a graph's calls once and replay them.
    nhwc : convolve channels-last, as tensor cores want it.
    tf32 : multiply what is float32 with 10 bits of mantissa, on GPUs that have it.
    search : let cuDNN time its convolutions when a graph is opened, and take the fastest.
    """

    capture: bool = True
    nhwc: bool = True
    tf32: bool = True
    search: bool = True

    @classmethod
    def from_environment(cls) -> CudaOptions:
        """The defaults, with ``EDGEDIFFUSION_CUDA_GRAPH`` 0 or 1. Raises RequestError."""
        return cls(capture=is_on(CUDA_GRAPH, default=True))

    def provider_options(self) -> dict[str, str]:
        """The provider's own names for these choices.

        The arena grows by what is asked for and not by doubling: static graphs ask once.
        """
        return {
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "EXHAUSTIVE" if self.search else "HEURISTIC",
            "cudnn_conv_use_max_workspace": "1",
            "enable_cuda_graph": str(int(self.capture)),
            "fuse_conv_bias": "1",
            "prefer_nhwc": str(int(self.nhwc)),
            "use_tf32": str(int(self.tf32)),
        }


def open_backend(
    spec: GraphSpec, path: Path, options: EngineOptions, content: str | None = None
) -> BoundBackend:
    """Load the graph ``spec`` on the GPU, ready to run; ``path`` is the plain graph's.

    Raises DeviceError where CUDA does not work here, EngineError for a graph that fails, that CUDA
    does not take whole, that does not fit into the GPU, or that is not what ``spec`` says.
    Nothing is kept on disk, so ``content`` plays no part.
    """
    return open_cuda(spec, path, options, CudaOptions.from_environment())


def open_cuda(
    spec: GraphSpec, path: Path, options: EngineOptions, cuda: CudaOptions
) -> BoundBackend:
    """Do the same with chosen options."""
    gpu = require_cuda()
    if "cuda" in spec.devices:
        path = path.with_name(Path(spec.devices["cuda"].file).name)
    check_locations(path)
    arithmetic = arithmetic_of(spec, cuda, gpu.capability)
    try:
        return _opened(spec, path, options, cuda, arithmetic)
    except OutOfMemory as error:
        said = error.said
    # Behind the block, where the exception and with it the session is gone: its share is free.
    raise EngineError(_say_memory(path, said, f"{_free()} without it"))


class OutOfMemory(EngineError):
    """The GPU's memory ran out; ``said`` is ONNX Runtime's own line on it."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


def _opened(
    spec: GraphSpec, path: Path, options: EngineOptions, cuda: CudaOptions, arithmetic: Arithmetic
) -> BoundBackend:
    session = _open_whole(path, options, cuda)
    check_signature(session, spec, path)
    backend = BoundBackend(session, spec, arithmetic, _PLACE, partial(explain, path))
    try:
        backend.warm_up(capture=cuda.capture)
    except BaseException:
        backend.close()
        raise
    return backend


def libraries() -> dict[str, str]:
    """Return what computes here, with versions. Raises DeviceError where CUDA does not work."""
    gpu = require_cuda()
    return {
        "onnxruntime-gpu": ort.__version__,
        "cuda": str(ort.cuda_version),
        "driver": f"CUDA {gpu.cuda[0]}.{gpu.cuda[1]}",
        "gpu": f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}",
    }


def arithmetic_of(spec: GraphSpec, cuda: CudaOptions, capability: tuple[int, int]) -> Arithmetic:
    """Return the numbers that a graph is computed with here."""
    if spec.precision == "fp32" and cuda.tf32 and capability >= _AMPERE:
        return "tf32"
    return spec.precision


def explain(path: Path, error: Exception) -> EngineError:
    """Turn what ONNX Runtime raises into our error; too little memory comes with the figures."""
    said = first_line(error)
    if _NO_MEMORY.search(str(error)):
        return OutOfMemory(_say_memory(path, said, f"{_free()} beside what it holds"), said)
    return EngineError(f"{path} failed on the GPU: {said}")


def _say_memory(path: Path, said: str, free: str) -> str:
    weights = sum((path.parent / name).stat().st_size for name in external_locations(path))
    return (
        f"{path} does not fit into the GPU's memory: its weights alone take up to "
        f"{say_bytes(weights)}, how much its activations take on top is not known, {free}. ONNX "
        f"Runtime says: {said}. Close other programs on the GPU, ask for a smaller size or batch, "
        "export with --precision fp16, or use device 'cpu'"
    )


def _free() -> str:
    try:
        gpu = require_cuda()
        return f"{say_bytes(free_memory())} of {say_bytes(gpu.memory)} are free on the {gpu.name}"
    except DeviceError as trouble:
        return f"how much is free is not known ({trouble})"


def _open_whole(path: Path, options: EngineOptions, cuda: CudaOptions) -> ort.InferenceSession:
    """Open a graph of which nothing runs elsewhere."""
    try:
        session = _open(path, options, cuda, RECORD | WHOLE)
    except Exception as error:
        if left := _left_over(path, options, cuda):
            raise EngineError(_say_left_over(path, left)) from error
        if _NO_MEMORY.search(str(error)):
            raise explain(path, error) from error
        raise EngineError(f"{path} does not load in CUDA: {first_line(error)}") from error
    if session.get_providers()[0] != PROVIDER:
        raise DeviceError(
            f"{path}: ONNX Runtime opened it on {session.get_providers()[0]} instead of CUDA. "
            "Is the GPU still there (nvidia-smi)?"
        )
    if left := elsewhere(session, PROVIDER):
        raise EngineError(_say_left_over(path, left))
    return session


def _open(
    path: Path, options: EngineOptions, cuda: CudaOptions, entries: dict[str, str]
) -> ort.InferenceSession:
    chosen = session_options(options)
    chosen.log_severity_level = _SILENT
    for key, value in entries.items():
        chosen.add_session_config_entry(key, value)
    provider = (PROVIDER, cuda.provider_options())
    return ort.InferenceSession(
        str(path), sess_options=chosen, providers=[provider], enable_fallback=False
    )


def _left_over(path: Path, options: EngineOptions, cuda: CudaOptions) -> Counter[str]:
    """Load a refused graph once more, with the fallback, to learn what it would take."""
    uncaptured = CudaOptions(capture=False, nhwc=cuda.nhwc, tf32=cuda.tf32, search=False)
    try:
        return elsewhere(_open(path, options, uncaptured, dict(RECORD)), PROVIDER)
    except Exception:
        return Counter()  # it is refused for another reason, which the caller has


def _say_left_over(path: Path, left: Counter[str]) -> str:
    return (
        f"{path}: CUDA does not take all of the graph, {say_operators(left)} would run on ONNX "
        "Runtime's CPU provider. Export the bundle again with --target cuda, or use device 'cpu'"
    )
