"""What PyTorch rounds otherwise on AMD's CPUs.

PyTorch takes exponentials, logarithms and roots from libraries that choose their code by the CPU,
so now and then a last bit differs. Most comparisons hold all the same. These do not: trajectories
that amplify a rounding, where diffusers' own float32 lands elsewhere than on Intel, and levels read
from logarithms. They are held on Intel's CPUs; on AMD's a failure of theirs is expected.
"""

from __future__ import annotations

from typing import Final

import pytest

from edgediffusion.cpu import read_cpu

on_amd = pytest.mark.xfail(
    read_cpu().vendor == "AuthenticAMD",
    reason="PyTorch's own roundings are others on AMD",
    strict=False,
)

PARITY_ROWS: Final = frozenset(
    {
        "lcm-beta_schedule=linear,prediction_type=epsilon-20",
        "lcm-beta_schedule=linear,prediction_type=epsilon-50",
        "lcm-timestep_scaling=1.0-50",
        "lms-prediction_type=sample,use_exponential_sigmas=True-50",
        "dpm_2_ancestral-beta_end=0.02,beta_schedule=linear,beta_start=0.0001-5",
        "dpm_2_ancestral-beta_schedule=squaredcos_cap_v2,prediction_type=epsilon-50",
        "dpm_2_ancestral-beta_schedule=squaredcos_cap_v2,prediction_type=v_prediction-50",
        "dpm_2_ancestral-prediction_type=v_prediction,use_beta_sigmas=True-5",
        "dpm_multistep-algorithm_type=sde-dpmsolver++,solver_order=3,strength=0.75-50",
        (
            "dpm_singlestep-algorithm_type=sde-dpmsolver++,final_sigmas_type=zero,solver_orde"
            "r=3,solver_type=heun-20"
        ),
        (
            "dpm_singlestep-algorithm_type=sde-dpmsolver++,final_sigmas_type=sigma_min,solver"
            "_order=3,solver_type=heun-20"
        ),
        "deis-beta_schedule=squaredcos_cap_v2,prediction_type=v_prediction-50",
        "sa_solver-algorithm_type=noise_prediction,corrector_order=1,predictor_order=1-5",
    }
)
"""Rows of the parity matrix, by their names."""
