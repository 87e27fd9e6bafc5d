"""Worker for diffusers on PyTorch, and for the programs that kept the interface of its pipelines.

Options: ``dtype`` of the arithmetic, ``channels_last`` memory format, ``compile`` of the UNet and
the decoder by torch.compile.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.contenders.protocol import Hello, Job, Loaded, Made, Stage, serve

SCHEDULE_STEPS: Final = 20
TIMESTEP: Final = 500
PRECISIONS: Final = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass
class Pipelines:
    """A program with diffusers' pipelines. `open_pipeline` is where such programs differ."""

    greet: Callable[[Mapping[str, Any]], Hello]
    open_pipeline: Callable[[Job], Any]
    pipe: Any = None
    job: Job = field(init=False)
    latents: torch.Tensor = field(init=False)

    def hello(self, options: Mapping[str, Any]) -> Hello:
        """Say who the program is."""
        return self.greet(options)

    @torch.no_grad()
    def load(self, job: Job) -> Loaded:
        """Open the pipeline with the job's scheduler."""
        self.job = job
        self.pipe = self.open_pipeline(job)
        config = json.loads(Path(job.scheduler).read_text(encoding="utf-8"))
        self.pipe.scheduler = scheduler_class(config).from_config(config)
        self.pipe.set_progress_bar_config(disable=True)
        dtype = getattr(torch, job.options.get("dtype", "float32"))
        self.latents = torch.from_numpy(np.load(job.latents)).to(dtype)
        stages = {
            "text_encoder": Stage(self.encode),
            "unet_b1": Stage(partial(self.predict, 1)),
            "unet_b2": Stage(partial(self.predict, 2)),
            "scheduler": Stage(self.schedule, calls=SCHEDULE_STEPS),
            "vae_decode": Stage(self.decode),
        }
        return Loaded(stages, PRECISIONS[dtype], None if self.is_xl() else self.unet)

    @torch.no_grad()
    def encode(self) -> Sequence[Any]:
        """Tokenize and encode the prompt alone."""
        states: Sequence[Any] = self.pipe.encode_prompt(
            prompt=self.job.prompt,
            device=self.latents.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return states

    @torch.no_grad()
    def predict(self, batch: int) -> Any:
        """One call of the UNet with the job's noise and prompt."""
        states, conditions = self.conditions(batch)
        return self.call_unet(self.latents[:1].repeat(batch, 1, 1, 1), TIMESTEP, states, conditions)

    @torch.no_grad()
    def unet(self, sample: Any, timestep: int, states: Any) -> Any:
        """The UNet's prediction."""
        tensors = (torch.from_numpy(each).to(self.latents.dtype) for each in (sample, states))
        prediction = self.call_unet(next(tensors), timestep, next(tensors), {})
        return torch.as_tensor(prediction).float().numpy()

    def call_unet(
        self, sample: torch.Tensor, timestep: int, states: torch.Tensor, conditions: dict[str, Any]
    ) -> Any:
        """Call it as the pipeline does, also in dtypes: another call were compiled anew."""
        return self.pipe.unet(
            sample,
            torch.tensor(timestep, dtype=torch.float32),  # what Euler's timesteps are
            encoder_hidden_states=states,
            timestep_cond=None,
            cross_attention_kwargs=None,
            added_cond_kwargs=conditions or None,
            return_dict=False,
        )[0]

    def conditions(self, batch: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """What the UNet hears besides the picture: text, and in SDXL the picture's size."""
        if not hasattr(self, "_states"):
            self._states = self.encode()
        states = self._states[0].repeat(batch, 1, 1)
        if not self.is_xl():
            return states, {}
        sizes = torch.tensor([[*self.job.size, 0, 0, *self.job.size]], dtype=states.dtype)
        pooled = self._states[2].repeat(batch, 1)
        return states, {"text_embeds": pooled, "time_ids": sizes.repeat(batch, 1)}

    def is_xl(self) -> bool:
        """Whether the checkpoint is one of SDXL."""
        return "text_encoder_2" in self.pipe.config

    @torch.no_grad()
    def schedule(self) -> torch.Tensor:
        """The arithmetic of a whole schedule around a model that costs nothing."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(SCHEDULE_STEPS)
        latents = self.latents * scheduler.init_noise_sigma
        prediction = torch.zeros_like(latents)
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(latents, timestep)
            latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        return latents

    @torch.no_grad()
    def decode(self) -> Any:
        """Decode one picture."""
        scaled = self.latents[:1] / self.pipe.vae.config.scaling_factor
        return self.pipe.vae.decode(scaled, return_dict=False, generator=None)

    def picture(self, steps: int) -> Made:
        """Make the job's pictures."""
        seen: list[torch.Tensor] = []

        def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen.append(tensors["latents"])
            return tensors

        height, width = self.job.size
        images = self.pipe(
            prompt=[self.job.prompt] * self.job.batch,
            negative_prompt=[self.job.negative] * self.job.batch,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=self.job.guidance,
            latents=self.latents.clone(),
            output_type="np",
            callback_on_step_end=note,
        ).images
        pictures = (images * 255).round().astype(np.uint8)
        return Made(pictures, torch.as_tensor(seen[-1]).float().numpy(), len(seen))


def scheduler_class(config: Mapping[str, Any]) -> Any:
    """The class of diffusers that a scheduler's configuration names."""
    import diffusers

    return getattr(diffusers, config["_class_name"])


def greet(options: Mapping[str, Any]) -> Hello:
    """Versions of diffusers on PyTorch."""
    import diffusers  # noqa: F401 -- its import is no part of loading a model

    names = ("diffusers", "torch", "transformers")
    return Hello({name: version(name) for name in names})


def open_torch(job: Job) -> Any:
    """diffusers' own pipeline, tuned as its pages on CPUs and compilation recommend."""
    from diffusers import DiffusionPipeline

    dtype = getattr(torch, job.options["dtype"])
    pipe = DiffusionPipeline.from_pretrained(job.model, dtype=dtype, local_files_only=True)
    if job.options.get("channels_last"):
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if job.options.get("compile"):
        require_compiler()
        # One compilation for each shape: a graph for any batch would be slower.
        pipe.unet = torch.compile(pipe.unet, dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
    return pipe


def require_compiler() -> None:
    """Raise RuntimeError without a C++ compiler; torch.compile's own error ends in other hints."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is None:
        raise RuntimeError(f"torch.compile needs a C++ compiler: install {compiler}, or set CXX")


if __name__ == "__main__":
    serve(Pipelines(greet, open_torch))
