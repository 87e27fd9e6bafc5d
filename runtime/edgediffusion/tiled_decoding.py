"""Decode latents tile by tile: a small graph makes a large picture, in the memory of a tile.

Tiles overlap, and where they do, each gives way to the next linearly, so no seam shows. It is not
exact: the decoder's group norms and its attention see a tile and not the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import Engine

Float = NDArray[np.float32]

OVERLAP: Final = 0.25
"""The least share of a tile's side that it has in common with the next one."""


def decode_all(decoder: Engine, latents: Float) -> Float:
    """Decode latents (batch, channels, h, w), each picture in as many tiles as the graph needs."""
    (given,) = decoder.spec.inputs
    height, width = given.shape[2:]

    def decode(tile: Float) -> Float:
        picture = decoder(latent_sample=tile.astype(given.dtype))["sample"]
        return picture.astype(np.float32)

    return np.stack([decode_tiled(decode, image, (height, width)) for image in latents])


def decode_tiled(decode: Callable[[Float], Float], latents: Float, tile: tuple[int, int]) -> Float:
    """Decode latents of shape (channels, h, w) to a picture of shape (colours, H, W).

    decode : a tile of latents, (1, channels, *tile), to its picture, (1, colours, height, width).
    tile : (h, w) in latents, at most those of the whole, which is then decoded in one go.
    """
    height, width = latents.shape[1:]
    tops, lefts = starts(height, tile[0]), starts(width, tile[1])
    made = {
        (top, left): decode(latents[None, :, top : top + tile[0], left : left + tile[1]])[0]
        for top in tops
        for left in lefts
    }
    colours, rows, columns = made[0, 0].shape
    if len(made) == 1:
        return np.asarray(made[0, 0], np.float32)
    scale = rows // tile[0]
    share = np.outer(_ramps(rows), _ramps(columns))
    picture = np.zeros((colours, height * scale, width * scale), np.float32)
    weights = np.zeros(picture.shape[1:], np.float32)
    for (top, left), part in made.items():
        place = np.s_[top * scale : top * scale + rows, left * scale : left * scale + columns]
        picture[:, *place] += share * part
        weights[place] += share
    picture /= weights
    return picture


def starts(side: int, tile: int) -> tuple[int, ...]:
    """Where the tiles of one side begin: evenly from edge to edge, overlapping enough."""
    step = max(1, int(tile * (1 - OVERLAP)))
    count = 1 + -(-(side - tile) // step)
    return tuple(round(i * (side - tile) / max(1, count - 1)) for i in range(count))


def _ramps(side: int) -> Float:
    """A weight for each pixel of a tile's side, from its edges upwards.

    Two tiles' ramps run against each other where they overlap; divided by their sum they blend
    linearly there.
    """
    rising = np.arange(1, side + 1, dtype=np.float32)
    return np.minimum(rising, rising[::-1])
