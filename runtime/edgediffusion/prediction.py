"""From what a model predicts to x0, the clean picture: converted here, once, for all samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.levels import Level, Row

Array = NDArray[np.float32]
Model = Callable[[Array, float], Array]
CANCELS: Final = 1e-12  # what is left of two float64 numbers that cancel


def mix(of_x: float, x: Array, of_y: float, y: Array) -> Array:
    """Weigh two arrays into a new float32 one.

    The larger weight comes last: where the two nearly cancel, the sum is rounded while it is small.
    """
    y = y.astype(np.float32, copy=False)
    if not of_x:
        return of_y * y
    if abs(of_x) < abs(of_y):
        of_x, x, of_y, y = of_y, y, of_x, x
    mixed = (of_y / of_x) * y
    mixed += x
    if of_x != 1:
        mixed *= of_x
    return mixed


@dataclass(frozen=True, slots=True)
class Denoised:
    """What one call of the model says of a state.

    x0 : the clean picture, float32, within the limits of the configuration.
    x : the state.
    level : its noise.
    raw : the prediction itself, None where there are limits; perhaps the model's own buffer.
    skip, out : ``x0 = skip * x + out * raw``.
    free : x0 before the limits, None where there are none.
    variance : the second half of the channels of a model that learned its variance, else None.
    """

    x0: Array
    x: Array
    level: Level
    raw: Array | None
    skip: float
    out: float
    free: Array | None = None
    variance: Array | None = None

    def eps(self) -> Array:
        """The noise that makes the state out of x0, a new array."""
        return self.linear(1 / self.level.sigma, -self.level.alpha / self.level.sigma)

    def slope(self) -> Array:
        """Derivative of the state by sigma: of variance-exploding states and flows, a new array."""
        return self.linear(1 / self.level.sigma, -1 / self.level.sigma)

    def along(self, length: float, further: Array | None = None) -> Array:
        """The state moved along `slope` by a length in sigma, and by `further`, a new array.

        A move is rounded by itself, unless it takes nearly all of the state and so would cancel it.
        """
        share = length / self.level.sigma
        cancels = abs(1 + share) < 0.25
        moved = self.linear(1 + share, -share) if cancels else length * self.slope()
        if further is not None:
            moved += further
        if not cancels:
            moved += self.x
        return moved

    def unlimited(self) -> Denoised:
        """The same without limits on x0."""
        return self if self.free is None else replace(self, x0=self.free)

    def linear(self, of_x: float, of_x0: float) -> Array:
        """Weigh state and x0, straight from the raw prediction where possible: fewer roundings.

        Returns a new float32 array.
        """
        if self.raw is None:
            return mix(of_x, self.x, of_x0, self.x0)
        rest = of_x + of_x0 * self.skip
        rest = 0.0 if abs(rest) <= CANCELS * abs(of_x) else rest
        return mix(rest, self.x, of_x0 * self.out, self.raw)


Denoise = Callable[[Array, Row], Denoised]


@dataclass(frozen=True)
class Limit:
    """Bounds on a predicted x0.

    largest : the largest magnitude.
    share : None to clip to ``largest``. Else the share of an image's values that are to stay
        within, at most ``largest`` and at least 1; the image is clipped there and scaled down to 1:
        dynamic thresholding, Saharia et al. 2022 (arXiv:2205.11487), section 2.3.
    """

    largest: float
    share: float | None = None

    def __call__(self, x0: Array) -> Array:
        """Return x0 within the limits, a new float32 array."""
        if self.share is None:
            return np.clip(x0, -self.largest, self.largest)
        values = abs(x0).reshape(len(x0), -1)
        bound = np.clip(np.quantile(values, self.share, axis=1), 1, self.largest)
        bound = bound.astype(np.float32).reshape(-1, *[1] * (x0.ndim - 1))
        return np.clip(x0, -bound, bound) / bound


def _epsilon(level: Level, data: float) -> tuple[float, float]:
    """Ho et al. 2020: the model predicts the noise."""
    return 1 / level.alpha, -level.sigma / level.alpha


def _velocity(level: Level, data: float) -> tuple[float, float]:
    """Salimans and Ho 2022: v = a * eps - s * x0, with (a, s) the level at unit variance."""
    variance = (level.alpha * data) ** 2 + level.sigma**2
    return level.alpha * data**2 / variance, -level.sigma * data / variance**0.5


def _sample(level: Level, data: float) -> tuple[float, float]:
    """The model predicts x0 itself."""
    return 0.0, 1.0


def _flow(level: Level, data: float) -> tuple[float, float]:
    """Liu et al. 2022 (arXiv:2209.03003): the model predicts eps - x0."""
    total = level.alpha + level.sigma
    return 1 / total, -level.sigma / total


def _inverted_flow(level: Level, data: float) -> tuple[float, float]:
    """Albergo et al. 2023 (arXiv:2303.08797): the model predicts x0 - eps."""
    skip, out = _flow(level, data)
    return skip, -out


def _edm(level: Level, data: float) -> tuple[float, float]:
    """Karras et al. 2022, table 1: c_skip and c_out; a velocity of the other sign."""
    skip, out = _velocity(level, data)
    return skip, -out


# x0 = skip * state + out * prediction; each function gives (skip, out) for a level, and the
# standard deviation of the data.
PREDICTIONS: Final[Mapping[str, Callable[[Level, float], tuple[float, float]]]] = {
    "epsilon": _epsilon,
    "v_prediction": _velocity,
    "sample": _sample,
    "flow_prediction": _flow,
    "inverted_flow": _inverted_flow,
    "edm": _edm,
}


@dataclass(frozen=True)
class Conversion:
    """How raw predictions become x0.

    prediction : a name in `PREDICTIONS`.
    limit : bounds on x0, None for none.
    learned : whether the model returns its variance as further channels.
    data : standard deviation of the data that the model was trained on (EDM), else 1.
    """

    prediction: str
    limit: Limit | None = None
    learned: bool = False
    data: float = 1.0


def denoiser(model: Model, conversion: Conversion) -> Denoise:
    """Wrap a model so that it takes a state and a `Row` and returns the predicted x0.

    Parameters
    ----------
    model : callable
        Takes the scaled state and the timestep, returns the raw prediction of the same shape, with
        twice the channels where the variance is learned. It may return a buffer that it uses again.
    conversion : Conversion
        What the prediction is.

    Returns
    -------
    callable
        Takes a float32 state and a `Row`, returns `Denoised` with new float32 arrays.

    Raises
    ------
    RequestError
        When called, if the model returns another shape.
    """
    coefficients = PREDICTIONS[conversion.prediction]

    def denoise(x: Array, row: Row) -> Denoised:
        scaled = x if row.input_scale == 1 else row.input_scale * x
        raw, variance = _split(np.asarray(model(scaled, row.timestep)), x, conversion.learned)
        skip, out = coefficients(row.level, conversion.data)
        x0 = mix(skip, x, out, raw)
        if conversion.limit is None:
            return Denoised(x0, x, row.level, raw, skip, out, None, variance)
        return Denoised(conversion.limit(x0), x, row.level, None, skip, out, x0, variance)

    return denoise


def _split(raw: Array, x: Array, learned: bool) -> tuple[Array, Array | None]:
    """Check the prediction's shape; split a learned variance off."""
    channels = x.shape[1] * 2 if learned else x.shape[1]
    expected = (x.shape[0], channels, *x.shape[2:])
    if raw.shape != expected:
        raise RequestError(
            f"model: returned shape {raw.shape} for a sample of shape {x.shape}; expected "
            f"{expected}"
            + (", as its variance_type says" if learned else " (split learned variances off)")
        )
    if not learned:
        return raw, None
    return raw[:, : x.shape[1]], raw[:, x.shape[1] :].astype(np.float32)
