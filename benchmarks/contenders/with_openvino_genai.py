"""Worker for OpenVINO GenAI's Text2ImagePipeline.

Option: ``precision``, the arithmetic that OpenVINO is told to use; None leaves it the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
import openvino_genai

from benchmarks.contenders.protocol import Hello, Job, Loaded, Made, Stage, serve

TIMESTEP: Final = 500
DEVICE: Final = "CPU"
NAMES: Final = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
TOKENS: Final = 77


class GivenNoise(openvino_genai.Generator):
    """Random numbers that are already drawn: the noise that all contenders begin with."""

    def __init__(self, latents: np.ndarray[Any, Any]) -> None:
        openvino_genai.Generator.__init__(self)
        self.latents = latents

    def next(self) -> float:
        """Never asked for by deterministic samplers."""
        raise NotImplementedError("the sampler drew fresh noise; it was to be deterministic")

    def randn_tensor(self, shape: openvino.Shape) -> openvino.Tensor:
        """Hand out the noise."""
        if tuple(shape) != self.latents.shape:
            raise ValueError(f"noise of shape {tuple(shape)} wanted, given {self.latents.shape}")
        return openvino.Tensor(self.latents.copy())


@dataclass
class GenAI:
    """The pipeline, compiled for the static shapes of the job, as its guide recommends."""

    pipe: Any = None
    parts: dict[str, Any] = field(default_factory=dict)
    job: Job = field(init=False)
    latents: Any = field(init=False)

    def hello(self, options: Mapping[str, Any]) -> Hello:
        """Say which OpenVINO."""
        names = ("openvino-genai", "openvino", "openvino-tokenizers")
        absent = {"scheduler": "OpenVINO GenAI steps inside generate() only"}
        return Hello({name: version(name) for name in names}, absent)

    def load(self, job: Job) -> Loaded:
        """Compile the parts and put them together; they stay within reach for timing."""
        self.job, self.latents = job, np.load(job.latents)
        parts = openvino_genai
        height, width = job.size
        text = parts.CLIPTextModel(self.folder("text_encoder")).reshape(2)
        unet = parts.UNet2DConditionModel(self.folder("unet"))
        unet.reshape(2 * job.batch, height, width, TOKENS)
        vae = parts.AutoencoderKL(self.folder("vae_decoder")).reshape(job.batch, height, width)
        self.parts = {"text": text, "unet": unet, "vae": vae}
        for part in self.parts.values():
            part.compile(DEVICE, **self.properties())
        scheduler = parts.Scheduler.from_config(job.scheduler, parts.Scheduler.Type.EULER_DISCRETE)
        self.pipe = parts.Text2ImagePipeline.stable_diffusion(scheduler, text, unet, vae)
        stages = {
            "text_encoder": self.text_alone,
            "unet_b1": partial(self.predict, 1),
            "unet_b2": partial(self.predict, 2),
            "vae_decode": partial(vae.decode, openvino.Tensor(self.latents)),
        }
        timed = {name: Stage(run) for name, run in stages.items()}
        return Loaded(timed, self.precision(), self.unet)

    def precision(self) -> str:
        """What the UNet computes in: as it was told, else OpenVINO's choice for this CPU."""
        hint = openvino.Core().get_property(DEVICE, "INFERENCE_PRECISION_HINT").to_string()
        return NAMES[self.job.options["precision"] or hint]

    def folder(self, part: str) -> str:
        """Where the exported graph of a part is."""
        return str(Path(self.job.model) / part)

    def properties(self) -> dict[str, Any]:
        """What OpenVINO is told besides the device."""
        precision = self.job.options["precision"]
        return {"INFERENCE_PRECISION_HINT": precision} if precision else {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A part that a picture does not need, made when it is first timed."""
        if name not in self.parts:
            self.parts[name] = make()
        return self.parts[name]

    def text_alone(self) -> object:
        """Tokenize and encode the prompt alone."""
        text = self.once("text_b1", self.open_text)
        return text.infer(self.job.prompt, self.job.negative, False)

    def open_text(self) -> Any:
        """The text encoder for one prompt."""
        text = openvino_genai.CLIPTextModel(self.folder("text_encoder")).reshape(1)
        text.compile(DEVICE, **self.properties())
        return text

    def predict(self, batch: int) -> object:
        """One call of the UNet with the job's noise and prompt."""
        unet, sample, timestep = self.once(f"unet_b{batch}", partial(self.ready, batch))
        return unet.infer(sample, timestep)

    def ready(self, batch: int) -> tuple[Any, openvino.Tensor, openvino.Tensor]:
        """A UNet of a batch with its text, and what it is called with."""
        unet = self.parts["unet"] if batch == 2 * self.job.batch else self.open_unet(batch)
        self.text_alone()
        hidden = np.array(self.parts["text_b1"].get_output_tensor(0).data)
        states = openvino.Tensor(np.repeat(hidden, batch, axis=0))
        unet.set_hidden_states("encoder_hidden_states", states)
        sample = openvino.Tensor(np.repeat(self.latents[:1], batch, axis=0))
        return unet, sample, openvino.Tensor(np.array([TIMESTEP], np.int64))

    def unet(self, sample: Any, timestep: int, states: Any) -> Any:
        """The UNet's prediction, of as many pictures as it is compiled for."""
        unet = self.parts["unet"]
        unet.set_hidden_states("encoder_hidden_states", openvino.Tensor(states))
        self.parts.pop(f"unet_b{len(sample)}", None)  # what `ready` set is gone
        step = openvino.Tensor(np.array([timestep], np.int64))
        return np.array(unet.infer(openvino.Tensor(sample), step).data)

    def open_unet(self, batch: int) -> Any:
        """The UNet for a batch that a picture does not use."""
        unet = openvino_genai.UNet2DConditionModel(self.folder("unet"))
        unet.reshape(batch, *self.job.size, TOKENS)
        unet.compile(DEVICE, **self.properties())
        return unet

    def picture(self, steps: int) -> Made:
        """Make the job's pictures."""
        seen: list[Any] = []

        def note(step: int, total: int, latents: openvino.Tensor) -> bool:
            seen.append(np.array(latents.data))
            return False

        height, width = self.job.size
        pictures = self.pipe.generate(
            self.job.prompt,
            negative_prompt=self.job.negative,
            num_images_per_prompt=self.job.batch,
            num_inference_steps=steps,
            guidance_scale=self.job.guidance,
            height=height,
            width=width,
            generator=GivenNoise(self.latents),
            callback=note,
        )
        # generate() sets the pipeline's own text on the UNet: what `ready` set is gone
        self.parts.pop(f"unet_b{2 * self.job.batch}", None)
        return Made(np.array(pictures.data), seen[-1], len(seen))


if __name__ == "__main__":
    serve(GenAI())
