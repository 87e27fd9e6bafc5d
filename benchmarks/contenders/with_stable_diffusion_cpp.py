"""Worker for stable-diffusion.cpp through stable-diffusion-cpp-python.

It takes no latents, but with its ``cpu`` generator a seed gives PyTorch's noise, and noise levels
can be given as numbers: the trailing ones of the job.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.contenders.protocol import Hello, Job, Loaded, Made, serve

WHOLE: Final = "stable-diffusion.cpp makes whole pictures only"
STAGES: Final = ("text_encoder", "unet_b1", "unet_b2", "scheduler", "vae_decode")


@dataclass
class StableDiffusionCpp:
    """The library, with its defaults for a CPU but for the number of threads."""

    model: Any = None
    job: Job = field(init=False)

    def hello(self, options: Mapping[str, Any]) -> Hello:
        """Say which version."""
        import stable_diffusion_cpp  # noqa: F401 -- its import is no part of loading a model

        names = ("stable-diffusion-cpp-python",)
        return Hello({name: version(name) for name in names}, dict.fromkeys(STAGES, WHOLE))

    def load(self, job: Job) -> Loaded:
        """Load the checkpoint's folder; weights are used as they are stored, so in fp16."""
        from stable_diffusion_cpp import StableDiffusion, sd_get_num_physical_cores

        self.job = job
        self.model = StableDiffusion(
            model_path=job.model,
            vae_decode_only=True,
            rng_type="cpu",
            sampler_rng_type="cpu",
            n_threads=sd_get_num_physical_cores(),  # left alone, the binding takes half of the CPUs
        )
        if not self.model.model:  # a null pointer; its log has the reason
            raise ValueError("stable-diffusion.cpp knows published architectures only, not this")
        return Loaded({}, "fp16")

    def picture(self, steps: int) -> Made:
        """Make the job's pictures, one after the other as the library does."""
        seen: list[int] = []
        height, width = self.job.size
        config = json.loads(Path(self.job.scheduler).read_text(encoding="utf-8"))
        images = self.model.generate_image(
            prompt=self.job.prompt,
            negative_prompt=self.job.negative,
            width=width,
            height=height,
            cfg_scale=self.job.guidance,
            sample_method="euler",
            sample_steps=steps,
            sigmas=",".join(f"{sigma:.9g}" for sigma in trailing_sigmas(config, steps)),
            seed=self.job.seed,
            batch_count=self.job.batch,
            progress_callback=lambda step, total, seconds: seen.append(step),
        )
        pictures = np.stack([np.asarray(image.convert("RGB")) for image in images])
        return Made(pictures, None, max(seen, default=0))


def trailing_sigmas(config: Mapping[str, Any], steps: int) -> list[float]:
    """The noise levels of Euler with trailing spacing, and the final 0."""
    first, last = config["beta_start"], config["beta_end"]
    total = config["num_train_timesteps"]
    if config["beta_schedule"] == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, total) ** 2
    else:
        betas = np.linspace(first, last, total)
    alphas = np.cumprod(1 - betas)
    sigmas = np.sqrt((1 - alphas) / alphas)
    timesteps = np.round(np.arange(total, 0, -total / steps)).astype(int) - 1
    return [*sigmas[timesteps].tolist(), 0.0]


if __name__ == "__main__":
    serve(StableDiffusionCpp())
