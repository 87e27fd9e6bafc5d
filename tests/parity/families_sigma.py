"""Grids of the classes that step in sigma, the noise of a variance-exploding state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tests.parity.grids import (
    OFFSET,
    SPACED,
    SPACINGS,
    STRENGTH,
    THREE,
    TWO,
    Family,
    clips,
    falling_sigmas,
    fractional,
    sigma_spacings,
    uneven,
    zero_snr,
)
from tests.parity.rows import Grid

_BROWNIAN: Final[Sequence[Grid]] = (
    *SPACED,
    *sigma_spacings(prediction_type=TWO),
    {"use_karras_sigmas": (True,), "timestep_spacing": SPACINGS},
    *sigma_spacings(**STRENGTH),
    {"noise_sampler_seed": (0, 2**40 + 1, [3, 4])},
)

FAMILIES: Final[Mapping[str, Family]] = {
    "LMSDiscreteScheduler": Family(
        "lms",
        OFFSET,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(prediction_type=THREE),
            {"use_karras_sigmas": (True,), "timestep_spacing": SPACINGS},
            {"use_karras_sigmas": (True,), **STRENGTH},
        ],
    ),
    "EulerDiscreteScheduler": Family(
        "euler",
        OFFSET,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(prediction_type=THREE),
            *sigma_spacings(timestep_spacing=SPACINGS, final_sigmas_type=("zero", "sigma_min")),
            *sigma_spacings(sigma_min=(0.1,), sigma_max=(10.0,)),
            *sigma_spacings(**STRENGTH),
            *sigma_spacings(beta_schedule=("squaredcos_cap_v2",)),
            {"interpolation_type": ("log_linear",), "timestep_spacing": SPACINGS},
            {"interpolation_type": ("log_linear",), "use_karras_sigmas": (True,)},
            {"timestep_type": ("continuous",), "prediction_type": THREE},
            {
                "timestep_type": ("continuous",),
                "prediction_type": TWO,
                "use_karras_sigmas": (True,),
                "sigma_min": (0.002,),
                "sigma_max": (700.0,),
            },
            {"final_sigmas_type": ("zero", "sigma_min"), "prediction_type": THREE},
            *zero_snr(),
            {"rescale_betas_zero_snr": (True,), "prediction_type": ("epsilon",)},
            {"timesteps": (uneven, fractional), "final_sigmas_type": ("zero", "sigma_min")},
            {"sigmas": (falling_sigmas,), "prediction_type": THREE},
        ],
    ),
    "EulerAncestralDiscreteScheduler": Family(
        "euler_ancestral",
        OFFSET,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *zero_snr(("v_prediction",)),
        ],
    ),
    "HeunDiscreteScheduler": Family(
        "heun",
        OFFSET,
        [
            *SPACED,
            {"beta_schedule": ("exp",), "prediction_type": TWO},
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(prediction_type=THREE),
            {"use_karras_sigmas": (True,), "timestep_spacing": SPACINGS},
            *sigma_spacings(**STRENGTH),
            *clips(THREE),
            {"timesteps": (uneven, fractional), "prediction_type": TWO},
        ],
    ),
    "KDPM2DiscreteScheduler": Family(
        "dpm_2",
        OFFSET,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(prediction_type=TWO),
            {"use_karras_sigmas": (True,), "timestep_spacing": SPACINGS},
            *sigma_spacings(**STRENGTH),
        ],
    ),
    "KDPM2AncestralDiscreteScheduler": Family(
        "dpm_2_ancestral",
        OFFSET,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(prediction_type=TWO),
            {"use_karras_sigmas": (True,), "timestep_spacing": SPACINGS},
            *sigma_spacings(**STRENGTH),
        ],
    ),
    "DPMSolverSDEScheduler": Family(
        "dpmpp_sde",
        OFFSET | {"noise_sampler_seed": 5},
        [
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            *sigma_spacings(),
            *({**grid, "steps": (5, 20)} for grid in _BROWNIAN),  # its noise is costly
        ],
    ),
}
