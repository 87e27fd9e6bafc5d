"""What a pipeline gives back: pictures, the steps to them, and text embeddings."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgediffusion._version import __version__
from edgediffusion.errors import RequestError, choices
from edgediffusion.image import preview_pixels
from edgediffusion.manifest import LatentSpec
from edgediffusion.picture import save_png
from edgediffusion.request import Request
from edgediffusion.residency import Residency
from edgediffusion.start_image import start_entry
from edgediffusion.textual_inversion import recipe_entry
from edgediffusion.timing import Timings

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Pictures and how they came about.

    images : uint8 array of shape (batch, height, width, 3).
    latents : float32 array of shape (batch, channels, h, w), as the sampler left them.
    request : the request with every default filled in; it makes the same pictures again.
    seeds : the seed of each image.
    truncated : for ``prompt`` and ``negative``, the end that did not fit into the text encoder.
    dropped_options : scheduler options of another class that the chosen sampler has no use for.
    device : the device that ran every graph; ``a+b`` where ``auto`` had to take two.
    arithmetic : the numbers that the device computed in, like fp32 or bf16.
    device_reason : why it was this device.
    residency : what stayed in memory: ``all``, ``one`` component at a time, or ``stream``.
    """

    images: NDArray[np.uint8]
    latents: Float
    request: Request
    seeds: tuple[int, ...]
    truncated: dict[str, str]
    dropped_options: tuple[str, ...]
    device: str
    arithmetic: str
    device_reason: str
    residency: Residency
    bundle: str
    bundle_sha256: str
    timings: Timings

    def recipe(self, index: int = 0) -> dict[str, Any]:
        """Return as JSON-ready data what is needed to make image ``index`` again."""
        drawn_together = self.request.noise_layout == "diffusers-batch"
        seeds = {
            "seed": list(self.seeds) if drawn_together else self.seeds[index],
            "batch": len(self.seeds) if drawn_together else 1,
        }
        request = {f.name: getattr(self.request, f.name) for f in fields(self.request)} | seeds
        request["embeddings"] = [recipe_entry(each) for each in self.request.embeddings]
        request["image"] = start_entry(self.request.image)
        return {
            "request": request,
            "image": index,
            "bundle": self.bundle,
            "bundle_sha256": self.bundle_sha256,
            "version": __version__,
            "device": self.device,
            "arithmetic": self.arithmetic,
            "device_reason": self.device_reason,
        }

    def save(self, path: str | os.PathLike[str], index: int = 0) -> None:
        """Write image ``index`` as PNG with its recipe; raises OutputError."""
        save_png(path, self.images[index], self.recipe(index))


PreviewDecoder = Literal["linear", "tiny"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the sampler, 0-based. The last one carries the result.

    sigma : the noise level that the latents are left with, 0 at the end.
    latents : float32 array of shape (batch, channels, h, w), in the sampler's own scaling.
    denoised : the picture that the model predicted from here, same shape.
    """

    index: int
    total: int
    sigma: float
    latents: Float
    denoised: Float
    result: Result | None = None
    _latent: LatentSpec = field(repr=False)
    _decode: Callable[[Float], NDArray[np.uint8]] = field(repr=False)

    def preview(self, decoder: PreviewDecoder = "linear") -> NDArray[np.uint8]:
        """Show the predicted picture, uint8 (batch, height, width, 3).

        decoder : ``linear``, a fit that needs no network: at the size of the latents, in
            microseconds. ``tiny``, the bundle's tiny decoder: at full size, in the time that the
            decoder takes, and again what loading it takes at the first preview.

        Raises RequestError where the bundle has no tiny decoder, or the residency no room for it.
        """
        if decoder == "linear":
            return preview_pixels(self.denoised, self._latent)
        if decoder != "tiny":
            known = choices(str(decoder), get_args(PreviewDecoder))
            raise RequestError(f"unknown preview decoder {decoder!r}: {known}")
        return self._decode(self.denoised)


@dataclass(frozen=True)
class Embeddings:
    """Text embeddings.

    hidden : float32 (texts, tokens, width), the states that condition the UNet. Long prompts in
        chunks have a multiple of the text encoder's tokens, all texts the same.
    pooled : float32 (texts, width), one vector a text.
    truncated : for each text, the end that did not fit.
    """

    hidden: Float
    pooled: Float
    truncated: tuple[str, ...]
