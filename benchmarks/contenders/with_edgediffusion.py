"""Worker for edgediffusion.

Options: ``device``, where its graphs run; ``preset``, by which it makes pictures of 20 steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

import edgediffusion as ed
from benchmarks.contenders.protocol import (
    PRESET_STEPS,
    Hello,
    Job,
    Loaded,
    Made,
    Stage,
    serve,
)
from edgediffusion.fingerprint import libraries_of
from edgediffusion.hashing import cache_folder
from edgediffusion.text_conditions import unet_rows
from edgediffusion.text_encoder import States

SCHEDULE_STEPS: Final = 20
TIMESTEP: Final = 500
CACHE: Final = cache_folder()


@dataclass
class EdgeDiffusion:
    """The runtime, through its public face."""

    pipe: ed.Pipeline = field(init=False)
    job: Job = field(init=False)
    latents: Any = field(init=False)

    def hello(self, options: Mapping[str, Any]) -> Hello:
        """Say which runtime, on which libraries."""
        versions = {name: version(name) for name in ("edgediffusion", "onnxruntime", "numpy")}
        return Hello(versions | libraries_of(options["device"]))

    def load(self, job: Job) -> Loaded:
        """Open the bundle and load the graphs that a picture needs, as the peers do."""
        self.job, self.latents = job, np.load(job.latents)
        # a cache for each device, as where one is used: in one they would push each other out
        os.environ["EDGEDIFFUSION_CACHE"] = str(CACHE / f"peers-{job.options['device']}")
        self.pipe = ed.Pipeline.open(job.model, device=job.options["device"])
        texts = tuple(self.pipe.bundle.manifest.tokenizers)
        for component in texts:
            self.pipe.engine(component)
        for batch in (1, 2) if job.options["preset"] else (2,):
            self.pipe.engine("unet", batch, job.size)
        self.pipe.engine("vae_decoder", 1, job.size)
        stages = {
            "text_encoder": Stage(partial(self.pipe.embed, [job.prompt])),
            "unet_b1": Stage(partial(self.predict, 1)),
            "unet_b2": Stage(partial(self.predict, 2)),
            "scheduler": Stage(self.schedule, calls=SCHEDULE_STEPS),
            "vae_decode": Stage(self.decode),
        }
        # the given inputs of a prediction have no place for what SDXL takes besides
        unet = self.unet if len(texts) == 1 else None
        return Loaded(stages, self.pipe.engine("unet", 2, job.size).arithmetic, unet)

    def predict(self, batch: int) -> object:
        """One call of the UNet with the job's noise and prompt."""
        if not hasattr(self, "_rows"):
            text = self.pipe.embed([self.job.prompt])
            recipe = self.pipe.bundle.manifest.conditioning.recipe
            self._rows = unet_rows([States(text.hidden, text.pooled)], self.job.size, recipe)
        sample = np.repeat(self.latents[:1], batch, axis=0)
        rows = {name: np.repeat(each, batch, axis=0) for name, each in self._rows.items()}
        return self.predict_rows(sample, TIMESTEP, rows)

    def unet(self, sample: Any, timestep: int, states: Any) -> Any:
        """The UNet's prediction for given text states."""
        return self.predict_rows(sample, timestep, {"encoder_hidden_states": states})

    def predict_rows(self, sample: Any, timestep: int, rows: Mapping[str, Any]) -> Any:
        """The UNet's prediction, by the engine that pictures are made with."""
        engine = self.pipe.engine("unet", len(sample), self.job.size)
        values = {"sample": sample, "timestep": np.full(1, timestep), **rows}
        inputs = {
            tensor.name: values[tensor.name][: tensor.shape[0]].astype(tensor.dtype)
            for tensor in engine.spec.inputs
        }
        return engine(**inputs)[engine.spec.outputs[0].name]

    def schedule(self) -> object:
        """The arithmetic of a whole schedule around a model that costs nothing."""
        config = json.loads(Path(self.job.scheduler).read_text(encoding="utf-8"))
        schedule = ed.schedule_from_config(config, steps=SCHEDULE_STEPS)
        prediction = np.zeros_like(self.latents)
        return list(ed.sample(schedule, lambda sample, timestep: prediction, self.latents))

    def decode(self) -> object:
        """Decode one picture."""
        engine = self.pipe.engine("vae_decoder", 1, self.job.size)
        return engine(latent_sample=self.latents[:1].astype(engine.spec.inputs[0].dtype))

    def picture(self, steps: int) -> Made:
        """Make the job's pictures. The seed's noise is the one in ``latents``, bit for bit."""
        seen = list(self.pipe.stream(self.request(steps)))
        result = seen[-1].result
        assert result is not None
        return Made(result.images, result.latents, len(seen))

    def request(self, steps: int) -> ed.Request:
        """The job as a request of the runtime."""
        euler = ed.Request(
            prompt=self.job.prompt,
            negative=self.job.negative,
            steps=steps,
            guidance=self.job.guidance,
            seed=self.job.seed,
            batch=self.job.batch,
            noise_layout="diffusers-batch" if self.job.batch > 1 else "per-image",
            sampler="euler",
            schedule="trailing",
            size=self.job.size,
        )
        preset = self.job.options["preset"]
        if preset is None or steps != PRESET_STEPS:
            return euler
        return replace(euler, preset=preset, steps=None, sampler=None, schedule=None)


if __name__ == "__main__":
    serve(EdgeDiffusion())
