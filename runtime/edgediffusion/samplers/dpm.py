"""DPM-Solver and DPM-Solver++, multistep and singlestep, deterministic and stochastic.

All of them hold x0 (``++``) or eps over a step of h in lambda, the half log signal-to-noise ratio,
plus the first terms of its Taylor series there. The weights of those terms, in units of the zeroth,
are the same function of h for x0, of -h for eps, and of 2h for x0 under fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edgediffusion.levels import Level, Row
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise, Denoised
from edgediffusion.samplers.parts import Array, States, Term, combine, freshen, hold_eps, hold_x0
from edgediffusion.schedule import Schedule


def dpm_multistep(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Multistep DPM-Solver++ and DPM-Solver: Lu et al. 2022 (arXiv:2211.01095), Algorithm 2."""
    algorithm, solver = str(table.options["algorithm_type"]), str(table.options["solver_type"])
    known: list[tuple[float, Array]] = []
    for row in table.rows:
        said = denoise(x, row)
        known = [(row.level.lam, _held(said, algorithm)), *known[:2]]
        used = known[: row.order]
        h = row.end.lam - row.level.lam
        weights = _multistep_weights([lam for lam, _ in used], h, solver, algorithm)
        terms = zip(weights, (held for _, held in used), strict=True)
        x = freshen(_move(x, terms, row, algorithm), row, noise)
        yield x, said.x0


def dpm_singlestep(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Singlestep DPM-Solver++ and DPM-Solver: Lu et al. 2022 (arXiv:2206.00927), Algorithm 2.

    A group of calls makes one step, first order to its first third, and so on to its end.
    """
    algorithm, solver = str(table.options["algorithm_type"]), str(table.options["solver_type"])
    group: list[tuple[Level, Array]] = []
    first = x
    for row in table.rows:
        said = denoise(x, row)
        if row.order == 1 or not group:
            first, group = x, []
        group.append((row.level, _held(said, algorithm)))
        start = group[0][0]
        h = row.end.lam - start.lam
        shares = [(level.lam - start.lam) / h if h else 0.0 for level, _ in group[1:]]
        weights = _singlestep_weights(shares, h, solver, algorithm)
        terms = zip(weights, (held for _, held in group), strict=True)
        x = freshen(_move(first, terms, row, algorithm), row, noise)
        yield x, said.x0


def _by_eps(algorithm: str) -> bool:
    return not algorithm.endswith("++")


def _held(said: Denoised, algorithm: str) -> Array:
    """What a step holds: x0, or eps."""
    return said.eps() if _by_eps(algorithm) else said.x0


def _move(x: Array, terms: Iterable[Term], row: Row, algorithm: str) -> Array:
    """Take a row's step with a mean of what was held; fresh noise, if any, is still to be added."""
    if _by_eps(algorithm):
        keep, held = hold_eps(row.start, row.end)
        held *= 2.0 if algorithm.startswith("sde") else 1.0
    else:
        keep, held = hold_x0(row.start, row.target)
    return combine((keep, x), *((held * weight, value) for weight, value in terms))


def _taylor(h: float, algorithm: str) -> tuple[float, float]:
    """Weights of the first and the second derivative, in units of the zeroth.

    Of the stochastic solver's second weight diffusers has the constant with the other sign than
    k-diffusion and the derivation; so have we, for the same picture.
    """
    stochastic = algorithm == "sde-dpmsolver++"
    h = -h if _by_eps(algorithm) else 2 * h if stochastic else h
    whole = -math.expm1(-h)
    constant = -0.5 if stochastic else 0.5
    return (1 - whole / h) / whole, ((whole - h) / h**2 + constant) / whole


def _multistep_weights(
    lams: Sequence[float], h: float, solver: str, algorithm: str
) -> tuple[float, ...]:
    """Weights of what was held, newest first; `lams` are its lambdas."""
    if len(lams) == 1 or h == 0:
        return (1.0, 0.0, 0.0)[: len(lams)]
    r0 = (lams[0] - lams[1]) / h
    first, second = _taylor(h, algorithm)
    if len(lams) == 2:
        share = (0.5 if solver == "midpoint" else first) / r0
        return 1 + share, -share
    r1 = (lams[1] - lams[2]) / h
    bend = (first * r0 + second) / (r0 + r1)
    return 1 + (first + bend) / r0, -(first + bend) / r0 - bend / r1, bend / r1


def _singlestep_weights(
    shares: Sequence[float], h: float, solver: str, algorithm: str
) -> tuple[float, ...]:
    """Weights of what was held, oldest first; `shares` say how far along the step the later lie."""
    if not shares or h == 0:
        return (1.0, 0.0, 0.0)[: 1 + len(shares)]
    first, second = _taylor(h, algorithm)
    if len(shares) == 1:
        share = (0.5 if solver == "midpoint" else first) / shares[0]
        return 1 - share, share
    r1, r0 = shares
    if solver == "midpoint":
        return 1 - first / r0, 0.0, first / r0
    near, far = first * r0 - 2 * second, first * r1 - 2 * second
    near, far = near / (r1 * (r0 - r1)), -far / (r0 * (r0 - r1))
    return 1 - near - far, near, far
