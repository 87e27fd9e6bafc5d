"""Samplers that remember the noise of earlier calls: LMS, PNDM, iPNDM, DEIS."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgediffusion.levels import Row
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise
from edgediffusion.samplers.parts import (
    Array,
    States,
    Term,
    adams_bashforth,
    combine,
    hold_eps,
    lagrange,
)
from edgediffusion.schedule import Schedule

LMS_ORDER = 4
TINY = 1e-8  # of alpha, below which iPNDM takes a state for noise alone


def lms(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """Linear multistep in sigma, its weights fitted to the uneven steps: k-diffusion.

    Begun in the middle, the weights are fitted to the steps before it, too, as in diffusers, though
    there are no slopes of these.
    """
    slopes: list[Array] = []
    sigmas = [row.sigma for row in reversed(table.left_out[1 - LMS_ORDER :])]
    for row in table.rows:
        said = denoise(x, row)
        sigmas = [row.sigma, *sigmas[: LMS_ORDER - 1]]
        weight, *others = lagrange_integrals(sigmas, row.sigma, row.end.sigma)
        older = list(zip(others, slopes, strict=False))
        x = said.along(weight, combine(*reversed(older)) if older else None)
        slopes = [said.slope(), *slopes[: LMS_ORDER - 2]]
        yield x, said.x0


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Integrate the Lagrange polynomial of each node from `start` to `end`, exactly."""
    centre, half = 0.5 * (start + end), 0.5 * (end - start)  # about the middle fewer digits cancel
    powers = range(len(nodes))
    moments = [0.0 if k % 2 else 2 * half ** (k + 1) / (k + 1) for k in powers]
    return lagrange([node - centre for node in nodes], moments)


def pndm(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """PNDM: Liu et al. 2022 (arXiv:2202.09778), Algorithm 2; by multistep alone: equation 12.

    What is mixed is the model's own prediction, eps or v, as in diffusers.
    """
    first = x
    slopes: list[Array] = []
    velocity = table.prediction == "v_prediction"
    runge_kutta = 0 if table.options["skip_prk_steps"] else 12
    for i, row in enumerate(table.rows):
        said = denoise(x, row)
        here = said.eps()
        if velocity:
            here = combine((row.alpha, here), (-row.sigma, said.x0))
        if i < runge_kutta:
            if i % 4 == 0:
                first, mixed = x, []
                slopes = [here, *slopes]
            mixed.append(here)
            if i % 4 == 3:
                here = combine(*zip((1 / 6, 1 / 3, 1 / 3, 1 / 6), mixed, strict=True))
            x = _follow_noise(first, [(1.0, here)], row, velocity=velocity)
        elif row.start != row.level:  # the first step once more, with the mean of its slopes
            x = _follow_noise(first, [(0.5, here), (0.5, slopes[0])], row, velocity=velocity)
        else:
            slopes = [here, *slopes[:3]]
            x = _follow_noise(x, adams_bashforth(slopes), row, velocity=velocity)
        yield x, said.x0


def _follow_noise(x: Array, slope: list[Term], row: Row, *, velocity: bool) -> Array:
    """Take a row's step with the noise held, or the velocity: PNDM's equation 9."""
    keep, held = hold_eps(row.start, row.end)
    if velocity:  # eps = alpha * v + sigma * x
        keep, held = keep + held * row.start.sigma, held * row.start.alpha
    return combine((keep, x), *((held * weight, array) for weight, array in slope))


def ipndm(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """Multistep on the noise, without warming up: Zhang and Chen 2022 (arXiv:2204.13902), iPNDM."""
    slopes: list[Array] = []
    for row in table.rows:
        said = denoise(x, row)
        slopes = [said.eps(), *slopes[:3]]
        # From noise alone diffusers makes noise alone, whatever the model said of the picture.
        blank = row.alpha <= TINY
        keep, held = (0.0, row.end.sigma) if blank else hold_eps(row.level, row.end)
        x = combine((keep, x), *adams_bashforth(slopes, held))
        yield x, said.x0


def deis(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """DEIS, rho-AB in log rho: Zhang and Chen 2022 (arXiv:2204.13902), equation 15."""
    known: list[tuple[float, Array]] = []
    for row in table.rows:
        said = denoise(x, row)
        known = [(row.sigma / row.alpha, said.eps()), *known[:2]]
        used = known[: row.order]
        weights = _log_integrals([rho for rho, _ in used], row.end.sigma / row.end.alpha)
        terms = ((row.end.alpha * w, eps) for w, (_, eps) in zip(weights, used, strict=True))
        x = combine((row.end.alpha / row.alpha, x), *terms)
        yield x, said.x0


def _log_integrals(rhos: list[float], end: float) -> list[float]:
    """Integrate over rho each Lagrange polynomial in log rho, from the newest rho to `end`."""
    start = rhos[0]
    if len(rhos) == 1:
        return [end - start]
    # In u = log(rho / start) the integrals of u**k * exp(u) follow from one another by parts.
    u = math.log(end / start)
    moments = [math.expm1(u)]
    for k in range(1, len(rhos)):
        moments.append(u**k * math.exp(u) - k * moments[-1])
    return [start * weight for weight in lagrange([math.log(r / start) for r in rhos], moments)]
