"""Grids of the classes that step from one whole timestep to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.parity.grids import (
    BOTH,
    OFFSET,
    SPACED,
    SPACINGS,
    STRENGTH,
    THREE,
    TRAINED_BETAS,
    TRAINING,
    TWO,
    UNCLIPPED,
    Family,
    clips,
    thresholds,
    uneven,
    zero_snr,
)

FAMILIES: Final[Mapping[str, Family]] = {
    "DDIMScheduler": Family(
        "ddim",
        UNCLIPPED | {"set_alpha_to_one": False},
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE, "eta": (0.0, 0.6)},
            {"eta": (1.0,), "set_alpha_to_one": BOTH},
            {"set_alpha_to_one": BOTH, "steps_offset": (0, 1)},
            *clips(THREE),
            *thresholds(THREE),
            *({**grid, "eta": (0.6,)} for grid in (*clips(THREE), *thresholds(THREE))),
            *zero_snr(),
            *({**grid, "eta": (0.6,)} for grid in zero_snr()),
            {**STRENGTH, "eta": (0.6,)},
        ],
    ),
    "DDPMScheduler": Family(
        "ddpm",
        UNCLIPPED,
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": THREE},
            {"beta_schedule": ("sigmoid", "laplace"), "prediction_type": TWO},
            {
                "variance_type": (
                    "fixed_small",
                    "fixed_small_log",
                    "fixed_large",
                    "fixed_large_log",
                    "learned",
                    "learned_range",
                ),
                "timestep_spacing": SPACINGS,
            },
            {"variance_type": ("learned", "learned_range"), "prediction_type": THREE},
            {"variance_type": ("learned_range",), "clip_sample": (True,)},
            {"variance_type": ("fixed_large", "learned_range"), **STRENGTH},
            *clips(THREE),
            *thresholds(THREE),
            *zero_snr(),
            {"timesteps": (uneven,), "prediction_type": TWO},
        ],
    ),
    "PNDMScheduler": Family(
        "pndm",
        OFFSET | {"skip_prk_steps": True, "set_alpha_to_one": False},
        [
            *SPACED,
            {"timestep_spacing": SPACINGS, "prediction_type": TWO, "skip_prk_steps": BOTH},
            {"set_alpha_to_one": BOTH, "skip_prk_steps": BOTH, "steps_offset": (0, 1)},
            {"beta_schedule": ("linear",), "skip_prk_steps": (False,)},
        ],
    ),
    "LCMScheduler": Family(
        "lcm",
        UNCLIPPED | {"set_alpha_to_one": False},
        [
            *TRAINING,
            {"prediction_type": THREE},
            {"original_inference_steps": (100, 60)},
            {"timestep_scaling": (1.0, 0.05)},
            {"set_alpha_to_one": BOTH, "steps_offset": (0, 1), "timestep_spacing": SPACINGS},
            {**STRENGTH, "prediction_type": TWO},
            *clips(THREE),
            *thresholds(THREE),
            *zero_snr(),
            {"timesteps": (uneven,), "prediction_type": TWO},
        ],
    ),
    "TCDScheduler": Family(
        "tcd",
        UNCLIPPED | {"set_alpha_to_one": False},
        [
            *TRAINING,
            {"prediction_type": THREE, "eta": (0.0, 0.3, 1.0)},
            {"original_inference_steps": (100, 60)},
            {"timestep_scaling": (1.0,)},
            {"set_alpha_to_one": BOTH, "steps_offset": (0, 1), "timestep_spacing": SPACINGS},
            {**STRENGTH, "eta": (0.0, 0.3)},
            *clips(THREE),
            *thresholds(THREE),
            *zero_snr(),
            {"timesteps": (uneven,), "eta": (0.0, 0.3)},
        ],
    ),
    "IPNDMScheduler": Family(
        "ipndm",
        {"num_train_timesteps": 1000},
        [
            {},
            {"num_train_timesteps": (400,)},
            {"trained_betas": (TRAINED_BETAS,), "steps": (99,)},
            STRENGTH,
        ],
    ),
}
