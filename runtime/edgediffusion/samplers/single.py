"""Samplers that make a step of each call of the model by itself."""

from __future__ import annotations

import math

import numpy as np

from edgediffusion.levels import Row
from edgediffusion.noise import NoiseSource
from edgediffusion.prediction import Denoise, Denoised
from edgediffusion.samplers.parts import Array, States, combine, freshen, hold_x0
from edgediffusion.schedule import Schedule

BOUNDARY = 0.5  # sigma_data of the consistency models' boundary condition


def euler(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Down the probability flow by Euler's method; fresh noise where the table has some.

    Euler in sigma (Karras et al. 2022, arXiv:2206.00364, Algorithm 2), k-diffusion's ancestral
    form, EDM, flow matching and trajectory consistency (TCD: Zheng et al. 2024, arXiv:2402.19159,
    Algorithm 4) differ in their tables alone.
    """
    for row in table.rows:
        said = denoise(x, row)
        x = freshen(said.linear(*hold_x0(row.start, row.target)), row, noise)
        yield x, said.x0


def ddim(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """DDIM: Song et al. 2020 (arXiv:2010.02502), equation 12.

    Where x0 is clipped, the noise stays as it was predicted, as in diffusers.
    """
    for row in table.rows:
        said = denoise(x, row)
        if said.free is None:
            x = said.linear(*hold_x0(row.start, row.target))
        else:
            x = combine((row.end.alpha, said.x0), (row.down, said.unlimited().eps()))
        x = freshen(x, row, noise)
        yield x, said.x0


def ddpm(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Ancestral sampling: Ho et al. 2020 (arXiv:2006.11239), Algorithm 2.

    Learned variances: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 15.
    """
    for row in table.rows:
        said = denoise(x, row)
        x = said.linear(*hold_x0(row.start, row.target))
        if said.variance is None:
            x = freshen(x, row, noise)
        elif row.fresh:
            deviation = _deviation(said.variance, row, str(table.options["variance_type"]))
            x += deviation * noise(x.shape)
        yield x, said.x0


def _deviation(learned: Array, row: Row, variance_type: str) -> Array:
    """Turn what the model says of the variance into a standard deviation."""
    if variance_type == "learned":
        return np.sqrt(learned)
    beta = 1 - (row.alpha / row.end.alpha) ** 2
    least = 2 * math.log(row.fresh)  # of the posterior
    share = 0.5 * learned + 0.5
    deviation: Array = np.exp(0.5 * (share * (math.log(beta) - least) + least))
    return deviation


def lcm(denoise: Denoise, x: Array, table: Schedule, noise: NoiseSource) -> States:
    """Latent consistency: Luo et al. 2023 (arXiv:2310.04378), Algorithm 3."""
    scaling = float(table.options["timestep_scaling"])
    for row in table.rows:
        said = denoise(x, row)
        of_x, of_x0 = _boundary(row.timestep, scaling)
        picture = combine((of_x0, _divided(said)), (of_x, x))
        x = freshen(row.end.alpha * picture, row, noise)
        yield x, picture


def _divided(said: Denoised) -> Array:
    """Predict x0 out of the noise by a division, as diffusers does and rounds."""
    if said.raw is None or said.skip <= 1:
        return said.x0
    x0 = said.linear(0.0, said.level.alpha)
    x0 /= said.level.alpha
    return x0


def _boundary(timestep: float, scaling: float) -> tuple[float, float]:
    """Weights of the state and of x0 in the picture: all state at timestep 0.

    In float32 as in diffusers: fresh noise makes so much of a rounding that no other will do.
    """
    time, data = np.float32(timestep) * np.float32(scaling), np.float32(BOUNDARY)
    whole = time**2 + data**2
    return float(data**2 / whole), float(time / np.sqrt(whole))
