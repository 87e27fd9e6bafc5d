"""Run the checkpoint as requests will run it: its scheduler, its guidance, given prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion.engine import open_engine
from edgediffusion.noise import TorchCpuNoise, randn
from edgediffusion.samplers import trajectory
from edgediffusion.schedule import schedule_from_config
from edgediffusion.text_conditions import join_states, silence, unet_rows
from edgediffusion.text_encoder import States
from edgediffusion_export.graphs import denoise
from edgediffusion_export.job import Job

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Moment:
    """The inputs of one call of the UNet with guidance: two rows, the empty prompt first.

    texts : the inputs after picture and timestep, in the graph's order.
    """

    sample: torch.Tensor
    timestep: torch.Tensor
    texts: tuple[torch.Tensor, ...]


def read_texts(job: Job, prompts: Sequence[str]) -> list[States]:
    """What the exported text encoders make of prompts."""
    made = []
    for network in job.text_encoders():
        spec = job.specs(network, "fp32")[0]
        with open_engine(spec, job.staging.folder, "cpu") as engine:
            runs = [engine(input_ids=job.tokenize(each, network.name)) for each in prompts]
        names = [tensor.name for tensor in spec.outputs]
        made.append([States(*(run[name].astype(np.float32) for name in names)) for run in runs])
    return [join_states(each) for each in zip(*made, strict=True)]


def walk(job: Job, unet: torch.nn.Module, prompts: Sequence[str]) -> list[list[Moment]]:
    """Make a picture's latents of each prompt, prompt i from seed i; return all calls of the UNet.

    The size is the smallest of the export's.
    """
    architecture, options = job.architecture, job.options
    size = min(job.sizes)
    sides = (side // architecture.downsampling for side in size)
    shape = (1, architecture.channels, *sides)
    config = job.checkpoint.scheduler
    schedule = schedule_from_config(config, steps=options.steps, sampler=options.sampler)
    (empty, *states) = read_texts(job, ["", *prompts])
    empty = silence(empty) if job.checkpoint.zero_empty_negative else empty
    walked = []
    for seed, state in enumerate(states):
        rows = unet_rows([empty, state], size, job.recipe)
        texts = tuple(torch.from_numpy(each) for each in rows.values())
        run = _Guided(unet, texts, options.guidance)
        for _ in trajectory(schedule, run, randn(shape, seed), rng=TorchCpuNoise(seed)):
            pass
        walked.append(run.moments)
    return walked


class _Guided:
    """The model that a sampler calls; it remembers what it was called with."""

    def __init__(
        self, unet: torch.nn.Module, texts: tuple[torch.Tensor, ...], guidance: float
    ) -> None:
        self.moments: list[Moment] = []
        self._unet = unet
        self._texts = texts
        self._guidance = guidance

    def __call__(self, sample: Floats, timestep: float) -> Floats:
        rows = torch.from_numpy(np.repeat(sample, 2, axis=0))
        moment = Moment(rows, torch.tensor([timestep], dtype=torch.float32), self._texts)
        self.moments.append(moment)
        negative, positive = predict(self._unet, moment).numpy()
        guided: Floats = negative + np.float32(self._guidance) * (positive - negative)
        return guided[None]


def predict(unet: torch.nn.Module, moment: Moment) -> torch.Tensor:
    """The UNet's raw prediction."""
    with torch.no_grad():
        predicted: torch.Tensor = denoise(unet, moment.sample, moment.timestep, *moment.texts)
    return predicted
