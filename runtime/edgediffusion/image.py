"""From decoded arrays to pictures, and from latents to previews."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import NumericalError
from edgediffusion.manifest import LatentSpec

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_FLAT = 2
"""A picture whose brightest and darkest value differ by fewer levels than this shows nothing."""


def to_pixels(decoded: NDArray[np.floating]) -> Pixels:
    """Turn (batch, 3, height, width) in [-1, 1] into uint8 (batch, height, width, 3).

    The arithmetic of diffusers' VaeImageProcessor: half, shift, clip, scale, round to even.
    """
    unit = np.clip(decoded.astype(np.float32) / 2 + np.float32(0.5), 0, 1)
    return np.ascontiguousarray((unit * 255).round().astype(np.uint8).transpose(0, 2, 3, 1))


def preview_pixels(latents: Float, spec: LatentSpec) -> Pixels:
    """Show scaled latents (batch, channels, h, w) as uint8 (batch, h, w, 3), without a network.

    A linear fit from latent channels to RGB, made at export and kept in the manifest.
    """
    rgb = np.einsum("bchw,cr->bhwr", latents, np.array(spec.rgb, np.float32), optimize=True)
    unit: Float = np.clip(rgb + np.array(spec.rgb_bias, np.float32), 0, 1)
    return (unit * 255).round().astype(np.uint8)


def require_finite(array: NDArray[np.floating], component: str, when: str) -> None:
    """Raise NumericalError naming the component if ``array`` holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise NumericalError(
            f"{component} computed NaN or infinity {when}. Run `edgediffusion verify` on this "
            "bundle; if it passes there, export again with --precision fp32"
        )


def require_picture(images: Pixels, component: str) -> None:
    """Raise NumericalError if a picture is of one flat colour, which no decoder makes by itself."""
    for i, image in enumerate(images):
        spread = image.max(axis=(0, 1)).astype(int) - image.min(axis=(0, 1))
        if spread.max() < _FLAT:
            raise NumericalError(
                f"{component} decoded picture {i} to one flat colour {image[0, 0].tolist()}. Run "
                "`edgediffusion verify` on this bundle; if it passes there, export again with "
                "--precision fp32"
            )
