"""Our side of a row: the inputs, the model's stand-in, our trajectory. Needs NumPy alone."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import edgediffusion as ed
from tests.golden.make_sampler_golden import FRESH_SEED, NOISE_SEED, stand_in
from tests.parity.rows import Row

Array = NDArray[Any]
BOUND: Final = 1e-5  # on the largest difference, of the largest value
CLEAN_SEED: Final = 13  # of the picture that a run begun in the middle begins from


def model_stand_in(
    x: Any,
    timestep: float,
    learns_variance: bool,
    sin: Any = np.sin,
    roll: Any = np.roll,
    concatenate: Any = np.concatenate,
) -> Any:
    """The deterministic model; a learned variance, between 0 and 1, follows in more channels."""
    mean = stand_in(x, timestep, sin, roll)
    if not learns_variance:
        return mean
    return concatenate([mean, 0.5 + 0.4 * sin(0.7 * x + timestep / 1000)], 1)


def inputs(row: Row, batch: int = 2, size: int = 4) -> tuple[Array, Array]:
    """Make the noise, and the clean latents for a run that begins in the middle.

    Images have three channels where the model returns a variance: DPM-Solver takes the first three.
    """
    shape = (batch, 3 if row.learns_variance else 4, size, size)
    return ed.randn(shape, NOISE_SEED), 0.8 * ed.randn(shape, CLEAN_SEED)


def schedule_of(row: Row) -> ed.Schedule:
    """Our schedule of the row."""
    wishes: dict[str, Any] = dict(row.lists) or {"steps": row.steps}
    if row.strength < 1:
        wishes["strength"] = row.strength
    return ed.schedule_from_config(row.config, **wishes, **row.arguments)


def our_run(row: Row, noise: Array, clean: Array) -> list[Array]:
    """Sample the row with our own code."""

    def model(x: Array, timestep: float) -> Any:
        return model_stand_in(x, timestep, row.learns_variance)

    start = clean if row.strength < 1 else None
    rng = ed.TorchCpuNoise(FRESH_SEED)
    return list(ed.sample(schedule_of(row), model, noise, rng=rng, start=start))


def distances(ours: list[Array], theirs: list[Array]) -> list[float]:
    """The largest difference, of the largest value, step by step; infinite where not finite."""
    found = (float(abs(a - b).max() / abs(b).max()) for a, b in zip(ours, theirs, strict=True))
    return [error if np.isfinite(error) else np.inf for error in found]
