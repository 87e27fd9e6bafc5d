"""Write k_diffusion.safetensors: the trajectories that k-diffusion's functions take.

    pip install --no-deps --target DIR k-diffusion
    PYTHONPATH=DIR python -m tests.golden.make_k_diffusion_golden     (from the repository root)

Of k-diffusion only ``sampling.py`` is imported, which needs SciPy, torchsde and tqdm. The model is
the stand-in of the diffusers golden file, as one that predicts eps at whatever level, with its
time fixed: the two libraries name a noise level's time differently. Each case says which sampler
of ours is the same, or where k-diffusion's definition is another than diffusers' and ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from tests.golden.certificate import write_golden
from tests.golden.make_sampler_golden import FRESH_SEED, NOISE_SEED, stand_in

FILE = Path(__file__).with_name("k_diffusion.safetensors")
TIME = 500.0
STEPS = 16
SHAPE = (2, 3, 2, 2)
BROWNIAN_SEED = 5
SIGMA_RANGE = (0.03, 14.6)


@dataclass(frozen=True)
class Case:
    """A function of k-diffusion, and ours.

    function : in ``k_diffusion.sampling``.
    keywords : its arguments.
    class_name, options : the scheduler class of diffusers that we sample by, and its options.
    differs : why the two are not the same, where they are not: ours is then diffusers'.
    agree : how many steps agree all the same; all where ``differs`` is empty.
    """

    function: str
    class_name: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""
    agree: int = STEPS


_SDE = {"algorithm_type": "sde-dpmsolver++"}
CASES = {
    "euler": Case("sample_euler", "EulerDiscreteScheduler"),
    "euler_ancestral": Case("sample_euler_ancestral", "EulerAncestralDiscreteScheduler"),
    "heun": Case("sample_heun", "HeunDiscreteScheduler"),
    "dpm_2": Case("sample_dpm_2", "KDPM2DiscreteScheduler"),
    "dpm_2_ancestral": Case("sample_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
    "lms": Case("sample_lms", "LMSDiscreteScheduler"),
    "dpmpp_2m": Case("sample_dpmpp_2m", "DPMSolverMultistepScheduler"),
    "dpmpp_2m_sde": Case(
        "sample_dpmpp_2m_sde",
        "DPMSolverMultistepScheduler",
        {"solver_type": "midpoint"},
        {**_SDE, "solver_type": "midpoint"},
    ),
    "dpmpp_2m_sde_heun": Case(
        "sample_dpmpp_2m_sde",
        "DPMSolverMultistepScheduler",
        {"solver_type": "heun"},
        {**_SDE, "solver_type": "heun"},
    ),
    "dpmpp_3m_sde": Case(
        "sample_dpmpp_3m_sde",
        "DPMSolverMultistepScheduler",
        {},
        {**_SDE, "solver_type": "heun", "solver_order": 3},
        differs="in the third order's last term diffusers has -1/2 where the integral, and "
        "k-diffusion, has +1/2",
        agree=2,
    ),
    "dpmpp_sde": Case(
        "sample_dpmpp_sde",
        "DPMSolverSDEScheduler",
        {},
        {"noise_sampler_seed": BROWNIAN_SEED},
    ),
}
# Functions of k-diffusion that diffusers, and so we, have no scheduler for.
WITHOUT_A_CLASS = ("sample_dpm_fast", "sample_dpm_adaptive", "sample_dpmpp_2s_ancestral")


def sampling() -> ModuleType:
    """Import ``k_diffusion.sampling`` without the package around it, which drags much in."""
    found = importlib.util.find_spec("k_diffusion")
    assert found is not None, "pip install --no-deps --target DIR k-diffusion; PYTHONPATH=DIR"
    package = ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations or ())
    utils = ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, count: x[(...,) + (None,) * (count - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    stubs = {"k_diffusion": package, "k_diffusion.utils": utils, "torchdiffeq": mock.MagicMock()}
    with mock.patch.dict(sys.modules, stubs):
        return importlib.import_module("k_diffusion.sampling")


def trajectory(module: ModuleType, case: Case, noise: Any, sigmas: Any) -> NDArray[np.float32]:
    """Run a function; return the latents after each step, in the variance-exploding state."""
    import torch

    def model(x: Any, sigma: Any) -> Any:
        sigma = sigma[:, None, None, None]
        scaled: Any = x / (sigma**2 + 1) ** 0.5
        return x - sigma * stand_in(scaled, TIME, torch.sin, torch.roll)

    # The first state as ours begins: unit noise at sigma alone, or at the variance of the level.
    preserving = case.class_name.startswith("DPMSolverMultistep")
    first = noise * ((sigmas[0] ** 2 + 1) ** 0.5 if preserving else sigmas[0])
    states: list[Any] = []
    generator = torch.Generator().manual_seed(FRESH_SEED)
    keywords = dict(case.keywords)
    if case.function == "sample_dpmpp_sde":
        ends = sigmas[-2].item(), sigmas[0].item()
        keywords["noise_sampler"] = module.BrownianTreeNoiseSampler(first, *ends, BROWNIAN_SEED)
    elif "noise_sampler" in inspect.signature(getattr(module, case.function)).parameters:
        keywords["noise_sampler"] = lambda *_: torch.randn(noise.shape, generator=generator)
    torch.manual_seed(FRESH_SEED)  # what Euler's churn draws from
    last = getattr(module, case.function)(
        model, first, sigmas, disable=True, callback=lambda now: states.append(now["x"]), **keywords
    )
    return np.stack([state.numpy() for state in [*states[1:], last]])


def main() -> None:
    """Run k-diffusion and write the file."""
    import torch

    module = sampling()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(NOISE_SEED))
    sigmas = module.get_sigmas_karras(STEPS, *SIGMA_RANGE)
    tensors = {"noise": noise.numpy(), "sigmas": sigmas.numpy()}
    tensors |= {name: trajectory(module, case, noise, sigmas) for name, case in CASES.items()}
    cases = json.dumps({name: asdict(case) for name, case in CASES.items()})
    packages = ("k-diffusion", "torch", "torchsde")
    write_golden(FILE, tensors, Path(__file__).name, packages, cases=cases)


if __name__ == "__main__":
    main()
