"""Samplers that call the model twice a step; the last step makes do with one call."""

from __future__ import annotations

from edgediffusion.brownian import Between, brownian_noise
from edgediffusion.errors import RequestError
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise
from edgediffusion.samplers.parts import Array, States, combine, freshen, hold_x0
from edgediffusion.schedule import Schedule


def heun(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """Heun's method in sigma: Karras et al. 2022 (arXiv:2206.00364), Algorithm 1."""
    before, first = x, x
    for row in table.rows:
        said = denoise(x, row)
        here = said.slope()
        length = row.end.sigma - row.start.sigma
        if row.start == row.level:
            before, first = x, here
            x = said.along(length)
        else:
            x = combine((1.0, before), (0.5 * length, first), (0.5 * length, here))
        yield x, said.x0


def dpm_2(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """The midpoint method in log sigma: DPM-Solver-2, Lu et al. 2022 (arXiv:2206.00927)."""
    before = x
    for row in table.rows:
        said = denoise(x, row)
        length = row.down - row.start.sigma
        if row.start == row.level:
            before, x = x, said.along(length)
        else:
            x = combine((1.0, before), (length, said.slope()))
        x = freshen(x, row, noise)
        yield x, said.x0


def dpmpp_sde(denoise: Denoise, x: Array, table: Schedule, _: NoiseSource) -> States:
    """DPM-Solver++ as a stochastic equation, by the midpoint method: k-diffusion.

    Its fresh noise is one Brownian path of its own seed, so that more steps refine the picture.
    """
    path = _brownian_path(table, x)
    before = x
    for row in table.rows:
        x0 = denoise(x, row).x0
        before = x if row.start == row.level else before
        keep, of_x0 = hold_x0(row.start, row.target)
        x = combine((keep, before), (of_x0, x0))
        if row.span is not None:
            x += row.fresh * path(*row.span)
        yield x, x0


def _brownian_path(table: Schedule, x: Array) -> Between:
    """The path between the run's least sigma above 0 and its greatest."""
    seed = table.options["noise_sampler_seed"]
    if seed is None:
        raise RequestError(
            f"noise_sampler_seed: sampler {table.sampler!r} draws from a path of its own; pass "
            "noise_sampler_seed=seed to schedule_from_config, or a list with one for each image"
        )
    low, high = table.sigma_range
    return brownian_noise(x.shape, seed, low, high, table.options["noise_sampler_kind"])
