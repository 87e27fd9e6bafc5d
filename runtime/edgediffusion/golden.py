"""Golden vectors: seeded inputs and PyTorch's outputs, by which any machine can prove a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import Engine
from edgediffusion.errors import IntegrityError
from edgediffusion.manifest import GoldenCase, GraphSpec, Noise, Stored
from edgediffusion.noise import randn

Tensors = Mapping[str, NDArray[np.generic]]


def read_tensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read all tensors of a safetensors file. Raises IntegrityError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, NDArray[np.generic]] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def golden_inputs(
    case: GoldenCase, spec: GraphSpec, tensors: Tensors
) -> dict[str, NDArray[np.generic]]:
    """Return the inputs of a case, stored or drawn from its seeds, in the graph's own dtypes."""
    made = {}
    for tensor in spec.inputs:
        recipe = case.inputs[tensor.name]
        if isinstance(recipe, Noise):
            value: NDArray[np.generic] = randn(tensor.shape, recipe.seed) * np.float32(recipe.scale)
        else:
            value = stored(recipe, tensors)
        made[tensor.name] = value.astype(tensor.dtype)
    return made


def stored(recipe: Stored, tensors: Tensors) -> NDArray[np.generic]:
    """Return a stored golden tensor; raises IntegrityError if the file lacks it."""
    if recipe.tensor not in tensors:
        raise IntegrityError(f"the golden file has no tensor {recipe.tensor!r}: export again")
    return tensors[recipe.tensor]


def relative_l2(got: NDArray[np.generic], want: NDArray[np.generic]) -> float:
    """Return the L2 norm of ``got - want`` over that of ``want``, in float64; NaN counts as inf."""
    wanted = want.astype(np.float64)
    error = float(np.linalg.norm(got.astype(np.float64) - wanted))
    scale = float(np.linalg.norm(wanted))
    ratio = error / scale if scale > 0 else (0.0 if error == 0 else np.inf)
    return ratio if np.isfinite(ratio) else float("inf")


def golden_errors(engine: Engine, tensors: Tensors, cases: int | None = None) -> Iterator[float]:
    """Run the first golden cases of a graph (None: all); yield each output's relative L2 error."""
    for case in engine.spec.golden[:cases]:
        outputs = engine(**golden_inputs(case, engine.spec, tensors))
        for name, recipe in case.outputs.items():
            got = outputs[name].reshape(-1)
            if recipe.indices is not None:
                got = got[stored(Stored(recipe.indices), tensors)]
            yield relative_l2(got, stored(recipe, tensors).reshape(-1))


def check_graph(engine: Engine, tensors: Tensors, cases: int | None = None) -> float:
    """Return the worst relative L2 error of a graph over its first golden cases (None: all)."""
    return max(golden_errors(engine, tensors, cases), default=float("inf"))
