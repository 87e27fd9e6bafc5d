"""Grids of the classes that know no training steps: EDM and flow matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tests.parity.grids import (
    BOTH,
    STRENGTH,
    THREE,
    TWO,
    Family,
    flow_sigmas,
    fractional,
    sigma_spacings,
    thresholds,
)
from tests.parity.rows import Grid

_EDM: Final[Sequence[Grid]] = (
    {
        "sigma_schedule": ("karras", "exponential"),
        "prediction_type": TWO,
        "final_sigmas_type": ("zero", "sigma_min"),
    },
    {"sigma_min": (0.01,), "sigma_max": (20.0,), "sigma_schedule": ("karras", "exponential")},
    {"sigma_data": (1.0, 0.25)},
    {"rho": (3.0, 9.0)},
    {"num_train_timesteps": (400,)},
    {"sigma_schedule": ("karras", "exponential"), **STRENGTH},
)

FAMILIES: Final[Mapping[str, Family]] = {
    "EDMEulerScheduler": Family(
        "edm_euler",
        {},
        [
            *_EDM,
        ],
    ),
    "EDMDPMSolverMultistepScheduler": Family(
        "edm_dpmpp_2m",
        {},
        [
            *_EDM,
            {
                "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
                "solver_order": (1, 2, 3),
                "solver_type": ("midpoint", "heun"),
                "final_sigmas_type": ("zero", "sigma_min"),
            },
            {"prediction_type": THREE, "solver_order": (2, 3)},
            {"algorithm_type": ("deis",), "final_sigmas_type": ("zero", "sigma_min")},
            {"solver_type": ("logrho", "bh1", "bh2")},
            {
                "lower_order_final": BOTH,
                "euler_at_final": BOTH,
                "solver_order": (2, 3),
                "final_sigmas_type": ("zero", "sigma_min"),
            },
            {"algorithm_type": ("sde-dpmsolver++",), **STRENGTH},
            *thresholds(TWO),
        ],
    ),
    "FlowMatchEulerDiscreteScheduler": Family(
        "flow_euler",
        {"num_train_timesteps": 1000},
        [
            {"shift": (1.0, 3.0), "stochastic_sampling": BOTH},
            {"shift": (3.0,), "shift_terminal": (0.1,)},
            {"shift": (3.0,), **STRENGTH, "stochastic_sampling": BOTH},
            {
                "use_dynamic_shifting": (True,),
                "mu": (0.5, 1.15),
                "time_shift_type": ("exponential", "linear"),
            },
            {"use_dynamic_shifting": (True,), "mu": (0.8,), "shift_terminal": (0.02,)},
            {"use_dynamic_shifting": (True,), "mu": (0.8,), "sigmas": (flow_sigmas,)},
            {"use_dynamic_shifting": (True,), "mu": (0.8,), "shift": (3.0,), **STRENGTH},
            {
                "base_shift": (0.3,),
                "max_shift": (2.0,),
                "base_image_seq_len": (64,),
                "max_image_seq_len": (1024,),
            },
            {"invert_sigmas": (True,), "shift": (1.0, 3.0)},
            {"num_train_timesteps": (400,), "shift": (1.0, 3.0)},
            *sigma_spacings(shift=(1.0, 3.0)),
            *sigma_spacings(shift=(3.0,), **STRENGTH),
            *sigma_spacings(use_dynamic_shifting=(True,), mu=(0.8,)),
            {"sigmas": (flow_sigmas,), "shift": (1.0, 3.0)},
            {"timesteps": (fractional,), "shift": (1.0, 3.0)},
        ],
    ),
    "FlowMatchHeunDiscreteScheduler": Family(
        "flow_heun",
        {"num_train_timesteps": 1000},
        [
            {"shift": (1.0, 3.0)},
            {"shift": (3.0,), **STRENGTH},
            {"num_train_timesteps": (400,)},
        ],
    ),
}
