"""Samplers that correct the last step with what the model says of its end: UniPC, SA-Solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgediffusion.levels import Level, Row
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise
from edgediffusion.samplers.parts import Array, States, combine, hold_eps, hold_x0, lagrange
from edgediffusion.schedule import Schedule


class Known(NamedTuple):
    """What a call of the model said: x0 or eps, at a level."""

    level: Level
    value: Array


class Last(NamedTuple):
    """The last step. Predicted and corrected, it differs in the weights of what is known alone.

    kept : what it keeps of the state, whatever the model says, with its fresh noise.
    scale : what those weights are multiplied by.
    row : its row.
    order : of its correction.
    """

    kept: Array
    scale: float
    row: Row
    order: int

    def plus(self, weights: Sequence[float], known: Sequence[Known]) -> Array:
        """Make the step, for the first time or once more: a new array."""
        x = combine(*((self.scale * w, k.value) for w, k in zip(weights, known, strict=True)))
        x += self.kept
        return x


# -------------------------------------------------------------------------------------------- UniPC


def unipc(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """UniPC: Zhao et al. 2023 (arXiv:2302.04867), Algorithms 5 to 8."""
    data, kind = bool(table.options["predict_x0"]), str(table.options["solver_type"])
    uncorrected = set(table.options["disable_corrector"])
    known: list[Known] = []
    last: Last | None = None
    for i, row in enumerate(table.rows):
        said = denoise(x, row)
        here = Known(row.level, said.x0 if data else said.eps())
        if last is not None and i - 1 not in uncorrected:
            used = known[: last.order]
            weights = _unipc_weights([k.level for k in used], row.level, kind, data=data, here=True)
            x = last.plus(weights, [here, *used])
        known = [here, *known[:3]]
        order = min(row.order, len(known))
        used = known[:order]
        weights = _unipc_weights([k.level for k in used], row.end, kind, data=data, here=False)
        keep, held = (hold_x0 if data else hold_eps)(row.level, row.end)
        last = Last(keep * x, held, row, order)
        x = last.plus(weights, used)
        yield x, said.x0


def _unipc_weights(
    levels: list[Level], end: Level, kind: str, *, data: bool, here: bool
) -> list[float]:
    """Weights of what is held over a step from the newest of `levels` to `end`; their sum is 1.

    With `here`, what the model says at `end` takes part, and its weight comes first.
    """
    start, order = levels[0], len(levels)
    if order == 1 and not here:  # also where the step ends without noise, and h is infinite
        return [1.0]
    h = end.lam - start.lam
    if h == 0:
        return [1.0] + [0.0] * (order - 1)
    places = [(level.lam - start.lam) / h for level in levels[1:]] + [1.0] * here
    signed = -h if data else h
    step = math.expm1(signed)
    scale = signed if kind == "bh1" else step
    if (order, here) in ((2, False), (1, True)):
        solved = [0.5]  # exact enough, and what its authors' code takes
    else:
        moments, phi, factorial = [], step / signed - 1, 1
        for k in range(1, len(places) + 1):
            moments.append(phi * factorial / scale)
            factorial *= k + 1
            phi = phi / signed - 1 / factorial
        solved = lagrange(places, moments)  # of the transposed Vandermonde system
    shares = [scale / step * rho / place for rho, place in zip(solved, places, strict=True)]
    older, at_end = (shares[:-1], shares[-1:]) if here else (shares, [])
    return [*at_end, 1 - sum(shares), *older]


# ---------------------------------------------------------------------------------------- SA-Solver

TAU_RANGE = (200, 800)  # the timesteps between which fresh noise is added


def sa_solver(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """SA-Solver: Xue et al. 2023 (arXiv:2309.05019), Algorithm 1, tau 1 in the middle, else 0."""
    data = table.options["algorithm_type"] == "data_prediction"
    most = max(int(table.options["predictor_order"]), int(table.options["corrector_order"]) - 1)
    known: list[Known] = []
    last: Last | None = None
    for i, row in enumerate(table.rows):
        said = denoise(x, row)
        here = Known(row.level, said.x0 if data else said.eps())
        if last is not None:
            used = [here, *known][: last.order]
            x = _sa_step(last, used, data=data, correct=True)
        known = [here, *known[: most - 1]]
        fresh = noise(x.shape)
        final = len(table.rows) - i + 1 if table.options["lower_order_final"] else most + 1
        corrector = min(int(table.options["corrector_order"]), final, len(known) + 1)
        last = _sa_last(x, row, fresh, corrector, data=data)
        used = known[: min(row.order, len(known))]
        x = _sa_step(last, used, data=data, correct=False)
        yield x, said.x0


def _tau2(row: Row) -> float:
    """How much of the noise is fresh in a row's step, squared."""
    low, high = TAU_RANGE
    return 1.0 if low <= row.timestep <= high else 0.0


def _sa_last(x: Array, row: Row, noise: Array, order: int, *, data: bool) -> Last:
    """Begin a row's step."""
    start, end, tau2 = row.level, row.end, _tau2(row)
    h = end.lam - start.lam
    if data:
        keep, scale = math.exp(-tau2 * h) * end.sigma / start.sigma, (1 + tau2) * end.alpha
        fresh = end.sigma * math.sqrt(-math.expm1(-2 * tau2 * h))
    else:
        keep, scale = end.alpha / start.alpha, -(1 + tau2) * end.sigma
        fresh = math.sqrt(tau2) * end.sigma * math.sqrt(math.expm1(2 * h))
    return Last(combine((keep, x), (fresh, noise)), scale, row, order)


def _sa_step(last: Last, used: list[Known], *, data: bool, correct: bool) -> Array:
    """Make the last step, for the first time or once more, by the stochastic Adams method."""
    start, end, tau2 = last.row.level, last.row.end, _tau2(last.row)
    h = end.lam - start.lam
    if h == 0:
        return last.kept
    lams = [known.level.lam for known in used]
    weights = _sa_weights(lams, start.lam, h, 1 + tau2 if data else -1.0)
    if data and len(used) == 2:  # the authors' second-order form, in place of the exact integral
        nudge = _second_order(h, 1 + tau2) / (h if correct else lams[0] - lams[1])
        weights = [weights[0] + nudge, weights[1] - nudge]
    return last.plus(weights, used)


def _second_order(h: float, rate: float) -> float:
    """What the second-order form adds to the newest weight, times the gap between the two."""
    return h**2 / 2 - (h * rate + math.expm1(-rate * h)) / rate**2


def _sa_weights(lams: Sequence[float], start: float, h: float, rate: float) -> list[float]:
    """Integrate each Lagrange polynomial in lambda against exp(rate * (lambda - end)) over a step.

    For eps the rate is -1; the integral is then in units of exp(h), relative to the step's start.
    """
    # Moments of u = lambda - start over 0 to h, by parts: exp(rate * (u - h)) * u**k.
    moments = [-math.expm1(-rate * h) / rate]
    for k in range(1, len(lams)):
        moments.append((h**k - k * moments[-1]) / rate)
    return lagrange([lam - start for lam in lams], moments)
