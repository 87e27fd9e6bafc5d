"""The UNet with guidance: what a sampler calls at every step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import Engine
from edgediffusion.image import require_finite

Float = NDArray[np.float32]


@dataclass
class Denoiser:
    """Predict with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    unet : the graph, of batch 2 to run both halves of the guidance as one call, or of batch 1.
    context : text states, one row for the prompt, before it one for the negative prompt when
        guidance is wanted; shape (1 or 2, length, width).
    guidance : scale of the step from the negative to the positive prediction.
    rescale : 0 to 1, how far the guided prediction takes the positive one's standard deviation
        (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
    engine_ms : milliseconds spent inside the engine, one entry for each call of this object.
    """

    unet: Engine
    context: Float
    guidance: float
    rescale: float = 0.0
    engine_ms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        inputs = {tensor.name: tensor for tensor in self.unet.spec.inputs}
        self._batch = self.unet.spec.batch
        self._context = self.context.astype(inputs["encoder_hidden_states"].dtype)
        self._sample = np.empty(inputs["sample"].shape, inputs["sample"].dtype)
        self._timestep = np.empty(inputs["timestep"].shape, inputs["timestep"].dtype)

    def __call__(self, sample: Float, timestep: float) -> Float:
        """Return the guided raw prediction for (batch, channels, h, w), image by image."""
        self._timestep.fill(timestep)
        before = len(self.engine_ms)
        guided = [self._guided(image) for image in sample]
        self.engine_ms[before:] = [sum(self.engine_ms[before:])]
        return np.stack(guided)

    def _guided(self, image: Float) -> Float:
        if len(self._context) == 1:
            alone: Float = self._predict(image, self._context)[0]
            return alone
        if self._batch == 2:
            negative, positive = self._predict(image, self._context)
        else:
            (negative,), (positive,) = (
                self._predict(image, row[np.newaxis]) for row in self._context
            )
        guided: Float = negative + np.float32(self.guidance) * (positive - negative)
        if self.rescale:
            spread = float(positive.std(ddof=1)) / float(guided.std(ddof=1))
            guided *= np.float32(self.rescale * spread + 1 - self.rescale)
        return guided

    def _predict(self, image: Float, context: NDArray[Any]) -> Float:
        self._sample[:] = image
        start = time.perf_counter_ns()
        outputs = self.unet(
            sample=self._sample, timestep=self._timestep, encoder_hidden_states=context
        )
        self.engine_ms.append((time.perf_counter_ns() - start) / 1e6)
        prediction: Float = outputs["out_sample"].astype(np.float32, copy=False)
        require_finite(prediction, "unet", f"at timestep {self._timestep[0]:g}")
        return prediction
