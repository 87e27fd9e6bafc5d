"""Samplers: generators over a table that turn noise into latents, one model call at a time.

A sampler is ``(denoise, x, table, noise) -> Iterator[(x, x0)]``: ``denoise(x, row)`` predicts x0,
``x`` is the first state, ``table`` the `Schedule`, ``noise(shape)`` gives fresh normals. It yields
the state after each call of the model and the x0 that was predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgediffusion.errors import RequestError
from edgediffusion.noise import NoiseSource
from edgediffusion.options import NAMES
from edgediffusion.prediction import Model, denoiser
from edgediffusion.samplers.double import dpm_2, dpmpp_sde, heun
from edgediffusion.samplers.dpm import dpm_multistep, dpm_singlestep
from edgediffusion.samplers.multistep import deis, ipndm, lms, pndm
from edgediffusion.samplers.parts import Array, Sampler, States
from edgediffusion.samplers.predictor_corrector import sa_solver, unipc
from edgediffusion.samplers.single import ddim, ddpm, euler, lcm
from edgediffusion.schedule import Schedule

__all__ = ["SAMPLERS", "SOLVERS", "Sampler", "SamplerStep", "sample", "trajectory"]

# What steps through the table of each of diffusers' scheduler classes.
SOLVERS: Final[Mapping[str, Sampler]] = {
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
    "PNDMScheduler": pndm,
    "LMSDiscreteScheduler": lms,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler,
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": dpm_2,
    "KDPM2AncestralDiscreteScheduler": dpm_2,
    "DPMSolverSDEScheduler": dpmpp_sde,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
    "UniPCMultistepScheduler": unipc,
    "DEISMultistepScheduler": deis,
    "SASolverScheduler": sa_solver,
    "LCMScheduler": lcm,
    "TCDScheduler": euler,
    "IPNDMScheduler": ipndm,
    "EDMEulerScheduler": euler,
    "EDMDPMSolverMultistepScheduler": dpm_multistep,
    "FlowMatchEulerDiscreteScheduler": euler,
    "FlowMatchHeunDiscreteScheduler": heun,
}
SAMPLERS: Final[Mapping[str, Sampler]] = {
    name: SOLVERS[meaning.scheduler] for name, meaning in NAMES.items()
}


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
    if rng is None and schedule.stochastic:
        raise RequestError(
            f"rng: sampler {schedule.sampler!r} draws fresh noise at every step; pass rng=, e.g. "
            "edgediffusion.TorchCpuNoise(seed)"
        )
    x = _first_state(schedule, noise, start)
    solver = SOLVERS[schedule.scheduler]
    denoise = denoiser(model, schedule.conversion)
    return _numbered(schedule, solver(denoise, x, schedule, rng or _no_noise))


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
    return schedule.first.alpha * clean + schedule.first.sigma * unit


def _numbered(schedule: Schedule, states: States) -> Iterator[SamplerStep]:
    rows = schedule.rows
    for index, (row, (x, x0)) in enumerate(zip(rows, states, strict=True)):
        yield SamplerStep(index, len(rows), row.end.sigma, x, x0)


def _no_noise(shape: tuple[int, ...]) -> Array:
    """Stand in for the noise of samplers that draw none."""
    raise AssertionError(f"a sampler drew noise of shape {shape} but its table has no fresh noise")
