"""What a machine's owner decides for all programs at once, by a variable that is 0 or 1."""

from __future__ import annotations

import os
from typing import Final

from edgediffusion.errors import RequestError

CUDA_GRAPH: Final = "EDGEDIFFUSION_CUDA_GRAPH"
"""Record a graph's calls on a GPU once and replay them; 1 by default."""
TENSORRT_REFIT: Final = "EDGEDIFFUSION_TENSORRT_REFIT"
"""Keep engines of TensorRT without weights, which come from the bundle; 0 by default."""


def is_on(variable: str, *, default: bool) -> bool:
    """Return what a variable of the environment says. Raises RequestError unless it is 0 or 1."""
    text = os.environ.get(variable) or str(int(default))
    if text not in ("0", "1"):
        raise RequestError(f"{variable} must be 0 or 1, got {text!r}")
    return text == "1"
