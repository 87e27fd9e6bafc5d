"""Samplers: generators over a table that turn noise into latents, one model call at a time.

A sampler is ``(denoise, x, table, noise) -> Iterator[(x, x0)]``: ``denoise(x, row)`` predicts x0,
``x`` is the first state, ``table`` the `Schedule`, ``noise(shape)`` gives fresh normals. It yields
the state after each call of the model and the x0 that was predicted. Arrays are float32 and
never changed after they were yielded; all coefficients are Python floats, so they stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise, Model, denoiser
from edgediffusion.schedule import Schedule
from edgediffusion.tables import Level, Row

Array = NDArray[np.float32]
States = Iterator[tuple[Array, Array]]
Sampler = Callable[[Denoise, Array, Schedule, NoiseSource], States]


def _follow(x: Array, x0: Array, start: Level, end: Level) -> Array:
    """Follow the probability flow from one level to another with x0 held: exact for that x0.

    DDIM's step, Euler's step in sigma and DPM-Solver++'s first order are all this one.
    """
    keep = end.sigma / start.sigma
    moved = keep * x
    moved += (end.alpha - keep * start.alpha) * x0
    return moved


def _noise_in(x: Array, x0: Array, level: Level) -> Array:
    """Say which noise makes x out of x0."""
    eps = x - level.alpha * x0
    eps *= 1 / level.sigma
    return eps


def ddim(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """DDIM without fresh noise: Song et al. 2020 (arXiv:2010.02502), equation 12, eta 0."""
    for row in table.rows:
        x0 = denoise(x, row)
        eps = _noise_in(x, x0, row.level)
        if table.clip is not None:  # eps stays as it was predicted, as in diffusers
            x0 = np.clip(x0, -table.clip, table.clip)
        x = row.end.alpha * x0 + row.end.sigma * eps
        yield x, x0


def euler(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """Euler's method in sigma: Karras et al. 2022 (arXiv:2206.00364), Algorithm 2, no churn."""
    for row in table.rows:
        x0 = denoise(x, row)
        x = _follow(x, x0, row.level, row.end)
        yield x, x0


def euler_ancestral(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Euler's method down to less than the next sigma, then fresh noise up to it: k-diffusion."""
    for row in table.rows:
        x0 = denoise(x, row)
        sigma, end = row.sigma, row.end.sigma
        down = end**2 / sigma
        x = _follow(x, x0, row.level, Level(row.end.alpha, down))
        if end > 0:
            x += math.sqrt(end**2 - down**2) * noise(x.shape)
        yield x, x0


def dpmpp_2m(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """DPM-Solver++(2M), midpoint: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2."""
    older, older_lam = None, 0.0
    for row in table.rows:
        x0 = denoise(x, row)
        lam = math.log(row.alpha / row.sigma)
        target = x0
        if row.order > 1 and older is not None:
            step = math.log(row.end.alpha / row.end.sigma) - lam
            target = x0 + (0.5 * step / (lam - older_lam)) * (x0 - older)
        x = _follow(x, target, row.level, row.end)
        older, older_lam = x0, lam
        yield x, x0


# Adams-Bashforth weights, newest slope first, by the number of slopes known.
_ADAMS_BASHFORTH: Final = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """PNDM by linear multistep alone (PLMS): Liu et al. 2022 (arXiv:2202.09778), equation 12."""
    first = x
    slopes: list[Array] = []
    for i, row in enumerate(table.rows):
        x0 = denoise(x, row)
        slope = _slope(x, x0, row, table.prediction)
        if i == 1:  # the first step once more, with the mean of the slopes at both its ends
            x, slope = first, 0.5 * (slope + slopes[0])
        else:
            slopes = [slope, *slopes[:3]]
            slope = _mix(slopes)
        x = _follow_slope(x, slope, row, table.prediction)
        yield x, x0


def _mix(slopes: list[Array]) -> Array:
    """Extrapolate from the slopes known so far, newest first."""
    weights = _ADAMS_BASHFORTH[len(slopes) - 1]
    mixed = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        mixed += weight * slope
    return mixed


def _slope(x: Array, x0: Array, row: Row, prediction: str) -> Array:
    """Express x0 as the quantity that diffusers' PNDM mixes: the model's own, eps or v."""
    eps = _noise_in(x, x0, row.level)
    return row.alpha * eps - row.sigma * x0 if prediction == "v_prediction" else eps


def _follow_slope(x: Array, slope: Array, row: Row, prediction: str) -> Array:
    """Take a step along a slope: PNDM's equation 9, which for eps is DDIM's step."""
    (alpha, sigma), end = row.start, row.end
    if prediction == "v_prediction":
        slope = alpha * slope + sigma * x
    return (end.alpha / alpha) * x + (end.sigma - end.alpha * sigma / alpha) * slope


SAMPLERS: Final[Mapping[str, Sampler]] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "pndm": pndm,
}
STOCHASTIC: Final = frozenset({"euler_ancestral"})  # samplers that draw fresh noise


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """What a sampler has after one call of the model.

    index, total : 0-based count of the calls, and how many there are.
    sigma : noise left in ``latents``, in the table's own scale; 0 at the end.
    latents : float32 state, of the noise's shape.
    denoised : float32 x0 that the model predicted at this call.
    """

    index: int
    total: int
    sigma: float
    latents: Array
    denoised: Array


def trajectory(
    schedule: Schedule,
    model: Model,
    noise: Array,
    rng: NoiseSource | None = None,
    start: Array | None = None,
) -> Iterator[SamplerStep]:
    """Sample, with everything that a progress bar or a preview wants to know.

    Parameters
    ----------
    schedule : Schedule
        Out of ``schedule_from_config``.
    model : callable
        Takes the scaled state and the timestep, returns the raw prediction; guidance is its affair.
    noise : ndarray of shape (batch, channels, height, width), float32
        Unit noise; scaled here.
    rng : callable, optional
        Takes a shape, returns fresh float32 normals; see ``edgediffusion.noise.noise_source``.
    start : ndarray of the same shape, optional
        Clean latents to begin from, under the first level's noise, instead of from noise alone.

    Yields
    ------
    SamplerStep
        One for each call of the model; its arrays are the caller's to keep, not to change.

    Raises
    ------
    RequestError
        At the call, for noise that is not finite, a start of another shape, or a sampler that
        needs ``rng``; in the loop, for a model that returns another shape.
    """
    name = schedule.sampler
    if rng is None and name in STOCHASTIC:
        raise RequestError(
            f"rng: sampler {name!r} draws fresh noise at every step; pass rng=, e.g. "
            "edgediffusion.TorchCpuNoise(seed)"
        )
    x = _first_state(schedule, noise, start)
    return _numbered(
        schedule,
        SAMPLERS[name](denoiser(model, schedule.prediction), x, schedule, rng or _no_noise),
    )


def sample(
    schedule: Schedule,
    model: Model,
    noise: Array,
    rng: NoiseSource | None = None,
    start: Array | None = None,
) -> Iterator[Array]:
    """Sample: yield the latents after each call of the model. Arguments as for `trajectory`."""
    return (step.latents for step in trajectory(schedule, model, noise, rng, start))


def _first_state(schedule: Schedule, noise: Array, start: Array | None) -> Array:
    """Scale the noise, or put it over the clean latents to begin from."""
    unit = np.asarray(noise, dtype=np.float32)
    if not np.all(np.isfinite(unit)):
        raise RequestError("noise: holds NaN or infinity; pass edgediffusion.randn(shape, seed)")
    if start is None:
        return schedule.init_noise_scale * unit
    clean = np.asarray(start, dtype=np.float32)
    if clean.shape != unit.shape or not np.all(np.isfinite(clean)):
        raise RequestError(
            f"start: got shape {clean.shape}, expected finite latents of the noise's shape "
            f"{unit.shape}; encode the picture at the size of the run"
        )
    first = schedule.rows[0].level
    return first.alpha * clean + first.sigma * unit


def _numbered(schedule: Schedule, states: States) -> Iterator[SamplerStep]:
    rows = schedule.rows
    for index, (row, (x, x0)) in enumerate(zip(rows, states, strict=True)):
        yield SamplerStep(index, len(rows), row.end.sigma, x, x0)


def _no_noise(shape: tuple[int, ...]) -> Array:
    """Stand in for the noise of samplers that draw none."""
    raise AssertionError(f"a sampler drew noise of shape {shape} but is not in STOCHASTIC")
