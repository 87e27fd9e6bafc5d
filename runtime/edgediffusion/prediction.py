"""From what a model predicts to x0, the clean picture: converted here, once, for all samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.tables import Level, Row

Array = NDArray[np.float32]
Model = Callable[[Array, float], Array]
Denoise = Callable[[Array, Row], Array]


def _epsilon(level: Level) -> tuple[float, float]:
    """Ho et al. 2020: the model predicts the noise."""
    return 1 / level.alpha, -level.sigma / level.alpha


def _velocity(level: Level) -> tuple[float, float]:
    """Salimans and Ho 2022: v = a * eps - s * x0, with (a, s) the level at unit variance."""
    variance = level.alpha**2 + level.sigma**2
    return level.alpha / variance, -level.sigma / variance**0.5


def _sample(_: Level) -> tuple[float, float]:
    """The model predicts x0 itself."""
    return 0.0, 1.0


# x0 = skip * state + out * prediction; each function gives (skip, out) for a level.
PREDICTIONS: Final[Mapping[str, Callable[[Level], tuple[float, float]]]] = {
    "epsilon": _epsilon,
    "v_prediction": _velocity,
    "sample": _sample,
}


def denoiser(model: Model, prediction: str) -> Denoise:
    """Wrap a model so that it takes a state and a `Row` and returns the predicted x0.

    Parameters
    ----------
    model : callable
        Takes the scaled state and the timestep, returns the raw prediction of the same shape.
        It may return a buffer that it uses again.
    prediction : str
        A name in `PREDICTIONS`.

    Returns
    -------
    callable
        Takes a float32 state and a `Row`, returns x0 as a new float32 array.

    Raises
    ------
    RequestError
        When called, if the model returns another shape.
    """
    coefficients = PREDICTIONS[prediction]

    def denoise(x: Array, row: Row) -> Array:
        scaled = x if row.input_scale == 1 else row.input_scale * x
        raw = np.asarray(model(scaled, row.timestep))
        if raw.shape != x.shape:
            raise RequestError(
                f"model: returned shape {raw.shape} for a sample of shape {x.shape}; expected "
                "the same (learned variances must be split off)"
            )
        skip, out = coefficients(row.level)
        denoised = out * raw.astype(np.float32, copy=False)  # never the model's own buffer
        if skip:
            denoised += skip * x
        return denoised

    return denoise
