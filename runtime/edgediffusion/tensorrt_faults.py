"""What stopped a build of TensorRT, in terms of the GPU: a kind it does not know, or its memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgediffusion.byte_sizes import say_bytes
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.graph_bytes import read_graph_bytes
from edgediffusion.tensorrt_run import Machine

_UNKNOWN_GPU: Final = re.compile(r"not supported by this TensorRT|unsupported SM", re.IGNORECASE)
_NO_MEMORY: Final = re.compile(r"out ?of ?memory|insufficient memory", re.IGNORECASE)
"""The library's own words, as its users quote them: NVIDIA/TensorRT issues 477, 2643, 4359."""


def explain_build(machine: Machine, graph: Path, error: EngineError) -> EngineError | DeviceError:
    """Return what to raise for a failed build: ``error``, or what the GPU has to do with it."""
    gpu, name = machine.cuda.gpu, f"{machine.trt.__name__} {machine.trt.__version__}"
    if _UNKNOWN_GPU.search(str(error)):
        return DeviceError(
            f"{name} builds nothing for the {gpu.name}, which has compute capability "
            f"{gpu.compute_capability}: use device 'cuda' or 'cpu', or install an earlier TensorRT "
            "for an older GPU, a later one for a newer GPU"
        )
    if _NO_MEMORY.search(str(error)):
        weights = say_bytes(read_graph_bytes(graph).weights)
        return machine.cuda.too_little_memory(
            f"{error}. The build needs more than the weights alone, {weights}"
        )
    return error
