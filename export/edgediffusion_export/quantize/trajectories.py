"""Run the checkpoint as requests will run it: its scheduler, its guidance, given prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion.engine import open_engine
from edgediffusion.noise import TorchCpuNoise, randn
from edgediffusion.samplers import trajectory
from edgediffusion.schedule import schedule_from_config
from edgediffusion_export.graphs import NETWORKS
from edgediffusion_export.job import Job

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Moment:
    """The inputs of one call of the UNet with guidance: two rows, the empty prompt first."""

    sample: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor


def text_states(job: Job, prompts: Sequence[str]) -> list[Floats]:
    """What the exported text encoder makes of prompts, float32 (1, tokens, width) each."""
    (network,) = (network for network in NETWORKS if network.name == "text_encoder")
    spec = job.specs(network, "fp32")[0]
    with open_engine(spec, job.staging.folder, "cpu") as engine:
        return [
            engine(input_ids=job.tokenize(prompt))["last_hidden_state"].astype(np.float32)
            for prompt in prompts
        ]


def walk(job: Job, unet: torch.nn.Module, prompts: Sequence[str]) -> list[list[Moment]]:
    """Make a picture's latents of each prompt, prompt i from seed i; return all calls of the UNet.

    The size is the smallest of the export's.
    """
    architecture, options = job.architecture, job.options
    sides = (side // architecture.downsampling for side in min(job.sizes))
    shape = (1, architecture.channels, *sides)
    config = job.checkpoint.scheduler
    schedule = schedule_from_config(config, steps=options.steps, sampler=options.sampler)
    (empty, *states) = text_states(job, ["", *prompts])
    walked = []
    for seed, state in enumerate(states):
        run = _Guided(unet, torch.from_numpy(np.concatenate([empty, state])), options.guidance)
        for _ in trajectory(schedule, run, randn(shape, seed), rng=TorchCpuNoise(seed)):
            pass
        walked.append(run.moments)
    return walked


class _Guided:
    """The model that a sampler calls; it remembers what it was called with."""

    def __init__(self, unet: torch.nn.Module, text: torch.Tensor, guidance: float) -> None:
        self.moments: list[Moment] = []
        self._unet = unet
        self._text = text
        self._guidance = guidance

    def __call__(self, sample: Floats, timestep: float) -> Floats:
        rows = torch.from_numpy(np.repeat(sample, 2, axis=0))
        moment = Moment(rows, torch.tensor([timestep], dtype=torch.float32), self._text)
        self.moments.append(moment)
        negative, positive = predict(self._unet, moment).numpy()
        guided: Floats = negative + np.float32(self._guidance) * (positive - negative)
        return guided[None]


def predict(unet: Any, moment: Moment) -> torch.Tensor:
    """The UNet's raw prediction."""
    with torch.no_grad():
        predicted: torch.Tensor = unet(
            moment.sample, moment.timestep, moment.text, return_dict=False
        )[0]
    return predicted
