"""Write schedulers.safetensors: trajectories of all of diffusers' classes, for all our samplers.

    python -m tests.golden.make_scheduler_golden        (from the repository root)

A few rows of the parity matrix of each class, on latents of 16 values, so that the samplers are
tested where diffusers is not installed too. The metadata holds each row.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.golden.certificate import write_golden

FILE = Path(__file__).with_name("schedulers.safetensors")
BATCH, SIZE = 1, 2

ROWS = """
ddim-clip_sample=True,eta=0.6,prediction_type=epsilon-5
ddim-eta=0.6,prediction_type=v_prediction,timestep_spacing=trailing-20
ddim-timestep_spacing=leading,strength=0.75-20
ddpm-timestep_spacing=leading,variance_type=learned_range-5
ddpm-prediction_type=v_prediction,timestep_spacing=trailing-20
ddpm-beta_schedule=sigmoid,prediction_type=epsilon-20
pndm-prediction_type=epsilon,skip_prk_steps=False,timestep_spacing=leading-20
lms-prediction_type=epsilon,use_karras_sigmas=True-20
lms-prediction_type=v_prediction,timestep_spacing=leading-5
euler-prediction_type=epsilon,use_beta_sigmas=True-20
euler_ancestral-timestep_spacing=trailing,strength=0.75-20
heun-prediction_type=epsilon,use_karras_sigmas=True-5
heun-prediction_type=v_prediction,timestep_spacing=trailing-20
dpm_2-prediction_type=epsilon,use_karras_sigmas=True-5
dpm_2-prediction_type=v_prediction,timestep_spacing=trailing-20
dpm_2_ancestral-prediction_type=epsilon,timestep_spacing=leading-20
dpm_multistep-algorithm_type=sde-dpmsolver++,final_sigmas_type=zero,solver_order=2,solver_type=heun-20
dpm_multistep-algorithm_type=dpmsolver++,final_sigmas_type=zero,solver_order=3,solver_type=midpoint-20
dpm_multistep-prediction_type=epsilon,use_lu_lambdas=True-5
dpm_multistep-flow_shift=3.0,prediction_type=flow_prediction,use_flow_sigmas=True-5
dpm_singlestep-algorithm_type=dpmsolver++,final_sigmas_type=zero,solver_order=2,solver_type=midpoint-20
dpm_singlestep-algorithm_type=dpmsolver++,final_sigmas_type=zero,solver_order=3,solver_type=heun-5
dpmpp_sde-base-20
dpmpp_sde-use_karras_sigmas=True-5
unipc-base-20
unipc-final_sigmas_type=sigma_min,predict_x0=True,solver_order=3,solver_type=bh1-20
unipc-flow_shift=3.0,prediction_type=flow_prediction,use_flow_sigmas=True-5
deis-base-20
deis-prediction_type=epsilon,use_karras_sigmas=True-5
sa_solver-base-20
sa_solver-algorithm_type=noise_prediction,prediction_type=epsilon-5
lcm-base-5
lcm-prediction_type=v_prediction-20
tcd-eta=0.3,prediction_type=epsilon-5
tcd-eta=1.0,prediction_type=v_prediction-20
ipndm-base-20
edm_euler-base-20
edm_dpmpp_2m-base-20
edm_dpmpp_2m-algorithm_type=sde-dpmsolver++,final_sigmas_type=zero,solver_order=2,solver_type=heun-5
flow_euler-shift=3.0,stochastic_sampling=False-20
flow_euler-mu=0.5,time_shift_type=exponential,use_dynamic_shifting=True-5
flow_heun-shift=3.0-20
""".strip().splitlines()


def main() -> None:
    """Run diffusers over the rows and write the file."""

    from tests.parity.matrix import matrix
    from tests.parity.ours import inputs
    from tests.parity.reference import float32_run

    known = {str(row): row for row in matrix()}
    rows = {name: known[name] for name in ROWS}
    tensors = {
        name: np.stack(float32_run(row, *inputs(row, BATCH, SIZE))[0]) for name, row in rows.items()
    }
    cases = json.dumps({name: asdict(row) for name, row in rows.items()})
    write_golden(FILE, tensors, Path(__file__).name, ("diffusers", "torch"), cases=cases)


if __name__ == "__main__":
    main()
