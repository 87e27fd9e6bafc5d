"""The UNet with guidance: what a sampler calls at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgediffusion.calls import Call
from edgediffusion.manifest import SHALLOW
from edgediffusion.unet import Unet

Float = NDArray[np.float32]
FEATURES = "deep_features"


@dataclass
class Denoiser:
    """Predict with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    unets : the UNet by kind of graph, one for each kind that ``calls`` names.
    calls : what each call of this object runs, in order.
    conditions : the UNet's inputs besides picture and timestep by name, text states above all; one
        row for the prompt, before it one for the negative prompt where a call is guided.
    guidance : scale of the step from the negative to the positive prediction.
    rescale : 0 to 1, how far the guided prediction takes the positive one's standard deviation
        (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
    engine_ms : milliseconds spent inside the engine, one entry for each call of this object.
    """

    unets: Mapping[str, Unet]
    calls: Sequence[Call]
    conditions: Mapping[str, NDArray[np.generic]]
    guidance: float
    rescale: float = 0.0
    engine_ms: list[float] = field(default_factory=list)
    _features: dict[int, NDArray[np.generic]] = field(default_factory=dict)
    _differences: dict[int, Float] = field(default_factory=dict)

    def __call__(self, sample: Float, timestep: float) -> Float:
        """Return the guided raw prediction for (batch, channels, h, w), image by image."""
        call = self.calls[len(self.engine_ms)]
        before = self._spent()
        predicted = [self._image(i, image, timestep, call) for i, image in enumerate(sample)]
        self.engine_ms.append(self._spent() - before)
        return np.stack(predicted)

    def _image(self, index: int, image: Float, timestep: float, call: Call) -> Float:
        """Predict for image ``index`` of the batch, which has deep features of its own."""
        rows = {n: each if call.guided else each[-1:] for n, each in self.conditions.items()}
        if call.kind == SHALLOW:
            kept = self._features[index]
            rows[FEATURES] = kept if call.guided else kept[-1:]
        outputs = self.unets[call.kind](image, timestep, **rows)
        if FEATURES in outputs:
            self._features[index] = outputs[FEATURES]
        predicted: Float = outputs["out_sample"].astype(np.float32, copy=False)
        positive: Float = predicted[-1]
        scale = np.float32(self.guidance)
        if call.guided:
            self._differences[index] = positive - predicted[0]
            return self._rescale(positive, predicted[0] + scale * self._differences[index])
        if call.kept:
            return self._rescale(positive, positive + (scale - 1) * self._differences[index])
        return positive

    def _rescale(self, positive: Float, guided: Float) -> Float:
        if self.rescale:
            spread = float(positive.std(ddof=1)) / float(guided.std(ddof=1))
            guided *= np.float32(self.rescale * spread + 1 - self.rescale)
        return guided

    def _spent(self) -> float:
        return sum(unet.spent_ms for unet in self.unets.values())
