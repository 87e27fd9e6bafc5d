"""Grids that several classes share: trainings, spacings, clipping, flows, and lists of levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from tests.parity.rows import Grid


class Family(NamedTuple):
    """A diffusers class: our sampler's name for it, its base configuration, its grids."""

    sampler: str
    base: Mapping[str, Any]
    grids: Sequence[Grid]


def uneven(steps: int) -> list[int]:
    """Falling whole timesteps that no spacing makes."""
    return [round(999 * (1 - i / (steps + 1)) ** 1.3) for i in range(steps)]


def fractional(steps: int) -> list[float]:
    """Falling timesteps between the whole ones."""
    return [990.5 * (1 - i / (steps + 1)) ** 1.3 for i in range(steps)]


def falling_sigmas(steps: int) -> list[float]:
    """Falling sigmas of a variance-exploding state, down to none."""
    return [round(14 * (1 - i / steps) ** 3, 6) for i in range(steps)] + [0.0]


def flow_sigmas(steps: int) -> list[float]:
    """Falling sigmas of a flow; diffusers adds the last, 0, itself."""
    return [round((1 - i / steps) ** 1.2, 6) for i in range(steps)]


SPACINGS: Final = ("leading", "trailing", "linspace")
TWO: Final = ("epsilon", "v_prediction")
THREE: Final = ("epsilon", "v_prediction", "sample")
BOTH: Final = (False, True)
TRAINED_BETAS: Final = np.linspace(0.001, 0.05, 100).tolist()
STABLE_DIFFUSION: Final = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
OFFSET: Final = STABLE_DIFFUSION | {"steps_offset": 1}
UNCLIPPED: Final = OFFSET | {"clip_sample": False}

SHIFTED: Final[Grid] = {"use_dynamic_shifting": (True,), "mu": (0.8,)}
STRENGTH: Final[Grid] = {"strength": (0.3, 0.75)}
TRAINING: Final[Sequence[Grid]] = (
    {"beta_schedule": ("linear",), "beta_start": (0.0001,), "beta_end": (0.02,)},
    {"beta_schedule": ("linear", "squaredcos_cap_v2"), "prediction_type": TWO},
    {"trained_betas": (TRAINED_BETAS,), "num_train_timesteps": (100,), "prediction_type": TWO},
    {"num_train_timesteps": (400,)},
)
SPACED: Final[Sequence[Grid]] = (
    *TRAINING,
    {"timestep_spacing": ("leading",), "steps_offset": (0, 3)},
    {"timestep_spacing": SPACINGS, **STRENGTH},
)


def sigma_spacings(**more: Sequence[Any]) -> list[Grid]:
    """Every way to lay sigmas out other than by timesteps."""
    names = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    return [{name: (True,), **more} for name in names]


def thresholds(predictions: Sequence[str]) -> list[Grid]:
    """Dynamic thresholding, with its two numbers."""
    return [
        {"thresholding": (True,), "prediction_type": predictions},
        {
            "thresholding": (True,),
            "dynamic_thresholding_ratio": (0.8,),
            "sample_max_value": (1.0, 1.7),
        },
    ]


def clips(predictions: Sequence[str]) -> list[Grid]:
    """Clipping of the predicted picture."""
    return [
        {"clip_sample": (True,), "prediction_type": predictions},
        {"clip_sample": (True,), "clip_sample_range": (0.4, 2.0)},
    ]


def zero_snr(predictions: Sequence[str] = ("v_prediction", "sample")) -> list[Grid]:
    """Betas rescaled to end in pure noise, where the model can begin in it and where it can't."""
    rescaled = {"rescale_betas_zero_snr": (True,)}
    return [
        {**rescaled, "timestep_spacing": SPACINGS, "prediction_type": predictions},
        {**rescaled, "timestep_spacing": ("leading",)},
    ]


def flows(*more: Grid) -> list[Grid]:
    """Flow-matching noise levels in a solver that was made for diffusion."""
    flow: Grid = {"use_flow_sigmas": (True,), "prediction_type": ("flow_prediction",)}
    return [
        {**flow, "flow_shift": (1.0, 3.0)},
        {**flow, **SHIFTED, "time_shift_type": ("exponential",)},
        {**flow, "flow_shift": (3.0,), **STRENGTH},
        *({**flow, **grid} for grid in more),
    ]
