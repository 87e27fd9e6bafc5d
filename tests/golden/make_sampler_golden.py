"""Write samplers.safetensors: the trajectories that diffusers' schedulers take.

    python -m tests.golden.make_sampler_golden        (from the repository root)

The file's metadata is its birth certificate and holds each case. The parity tests run the same
`reference` on more cases where diffusers is installed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.certificate import write_golden

FILE = Path(__file__).with_name("samplers.safetensors")

CLASSES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
SPACINGS = ("leading", "trailing", "linspace", "karras")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STABLE_DIFFUSION = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
NOISE_SEED = 7  # of the first state
FRESH_SEED = 3  # of the noise drawn on the way


@dataclass(frozen=True)
class Case:
    """A run: a scheduler configuration as JSON holds it, the sampler's name, the steps."""

    sampler: str
    config: Mapping[str, Any]
    steps: int

    def __str__(self) -> str:
        """Name the case as a test id."""
        spacing = self.config.get("timestep_spacing", "default")
        spacing = "karras" if self.config.get("use_karras_sigmas") else spacing
        prediction = self.config.get("prediction_type", "epsilon")
        return f"{self.sampler}-{spacing}-{prediction}-{self.steps}"


def has(sampler: str, spacing: str, prediction: str) -> bool:
    """Say whether diffusers' class has this combination at all."""
    if spacing == "karras" and sampler not in ("euler", "dpmpp_2m"):
        return False
    return prediction != "sample" or sampler not in ("pndm", "euler_ancestral")


def config_of(sampler: str, spacing: str, prediction: str, **more: Any) -> dict[str, Any]:
    """Stable Diffusion's configuration for the sampler's own class."""
    config = STABLE_DIFFUSION | {"_class_name": CLASSES[sampler], "prediction_type": prediction}
    karras = {"use_karras_sigmas": True}
    return config | (karras if spacing == "karras" else {"timestep_spacing": spacing}) | more


def cases(steps: Sequence[int]) -> Iterator[Case]:
    """Every sampler, spacing and prediction type."""
    for sampler in CLASSES:
        for spacing in SPACINGS:
            for prediction in PREDICTIONS:
                if has(sampler, spacing, prediction):
                    for count in steps:
                        yield Case(sampler, config_of(sampler, spacing, prediction), count)


def stand_in(
    x: NDArray[np.float32], timestep: float, sin: Any = np.sin, roll: Any = np.roll
) -> NDArray[np.float32]:
    """A model's stand-in: smooth, nonlinear, mixing neighbours; the same in NumPy and torch."""
    time = timestep / 1000
    smooth = 0.8 * sin(1.3 * x + time) + 0.3 * (1 - time) * x
    mixed: NDArray[np.float32] = smooth + 0.1 * roll(x, 1, -1)
    return mixed


def scheduler_for(sampler: str, config: Mapping[str, Any], **visits: Any) -> Any:
    """Make diffusers' scheduler out of a configuration, its own class's or another's.

    ``visits`` goes to ``set_timesteps``; without it, that is not called.
    """
    with warnings.catch_warnings():  # diffusers' own use of torch and NumPy
        warnings.simplefilter("ignore")
        import diffusers

        diffusers.logging.set_verbosity_error()
        scheduler = getattr(diffusers, CLASSES[sampler]).from_config(dict(config))
        if visits:
            scheduler.set_timesteps(**visits)
    return scheduler


def reference(
    scheduler: Any, noise: NDArray[np.float32], fresh_seed: int = FRESH_SEED
) -> list[NDArray[np.float32]]:
    """Step through a scheduler whose timesteps are set; return the latents after each call."""
    import torch

    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or repeated timesteps lose a step
    stochastic = "Ancestral" in type(scheduler).__name__
    extra = {"generator": torch.Generator().manual_seed(fresh_seed)} if stochastic else {}
    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    latents = []
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        raw = stand_in(scaled, float(timestep), torch.sin, torch.roll)
        x = scheduler.step(raw, timestep, x, **extra).prev_sample
        latents.append(x.numpy())
    return latents


def main() -> None:
    """Run diffusers and write the file."""
    import torch

    noise = torch.randn((2, 3, 4, 2), generator=torch.Generator().manual_seed(NOISE_SEED)).numpy()
    tensors, recorded = {"noise": noise}, {}
    for case in cases(steps=(1, 6, 20)):
        scheduler = scheduler_for(case.sampler, case.config, num_inference_steps=case.steps)
        tensors[str(case)] = np.stack(reference(scheduler, noise))
        recorded[str(case)] = asdict(case)
    packages = ("diffusers", "torch")
    write_golden(FILE, tensors, Path(__file__).name, packages, cases=json.dumps(recorded))


if __name__ == "__main__":
    main()
