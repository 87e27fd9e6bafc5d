"""Previews straight from latents: a linear fit of colours to latents, without any data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion_export.architecture import Architecture
from edgediffusion_export.graphs import Network, Traced

Picture = NDArray[np.float32]
Row = tuple[float, float, float]

PICTURES: Final = 24
LATENT_SIDE: Final = 16
"""The pictures are this many latents wide and high, which is enough for a linear fit."""

VIVID: Final = (0.4, 0.4)
"""Parameters of the beta distribution of the colours, near 0 and 1 more often than between: vivid
colours lie at the ends of what the latents can say, and pictures are made of them."""


def fit_latent_rgb(
    encoder: Network, vae: torch.nn.Module, architecture: Architecture
) -> tuple[Row, ...]:
    """Fit RGB in [0, 1] to scaled latents by least squares: a row per channel, then the bias."""
    side = LATENT_SIDE * architecture.downsampling
    latents, colours = [], []
    for picture in smooth_pictures(PICTURES, side):
        latents.append(_encode(encoder, vae, picture, architecture))
        colours.append(_pool(picture, architecture.downsampling).reshape(3, -1).T)
    known = np.concatenate(latents).astype(np.float64)
    with_one = np.concatenate([known, np.ones((len(known), 1))], axis=1)
    fit, *_ = np.linalg.lstsq(with_one, np.concatenate(colours).astype(np.float64), rcond=None)
    return tuple((round(float(r), 5), round(float(g), 5), round(float(b), 5)) for r, g, b in fit)


def smooth_pictures(count: int, side: int) -> Iterator[Picture]:
    """Yield flat colours, gradients and blobs as arrays of shape (3, side, side) in [0, 1]."""
    draw = np.random.Generator(np.random.PCG64(0))
    across, down = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    for index in range(count):
        first, second = draw.beta(*VIVID, (2, 3, 1, 1))
        angle, x, y = draw.random(3) * (2 * np.pi, 1, 1)
        blends = (
            np.zeros_like(across),
            np.clip(across * np.cos(angle) + down * np.sin(angle), 0, 1),
            np.exp(-8 * ((across - x) ** 2 + (down - y) ** 2)),
        )
        blend = blends[index % len(blends)]
        yield (first + (second - first) * blend).astype(np.float32)


def _encode(
    encoder: Network, vae: torch.nn.Module, picture: Picture, architecture: Architecture
) -> NDArray[np.float32]:
    """The mean of the scaled latents, one row per latent."""
    with torch.no_grad():
        moments = Traced(encoder, vae)(torch.from_numpy(picture[None] * 2 - 1))
    mean: NDArray[np.float32] = moments[0, : architecture.channels].numpy()
    scaled = (mean - architecture.shift_factor) * architecture.scaling_factor
    rows: NDArray[np.float32] = scaled.reshape(architecture.channels, -1).T
    return rows


def _pool(picture: Picture, factor: int) -> Picture:
    """Average the pixels that share a latent."""
    colours, height, width = picture.shape
    blocks = picture.reshape(colours, height // factor, factor, width // factor, factor)
    return np.asarray(blocks.mean(axis=(2, 4)), np.float32)
