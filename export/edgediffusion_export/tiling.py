"""Self-attention within tiles at the highest resolution that has any, where it costs most.

As in HyperTile (github.com/tfernd/HyperTile, 2023): a feature map of h x w places is cut into
``tiles`` x ``tiles`` parts and each part attends to itself only, so the products of queries and
keys shrink by tiles**2. It is no rewrite: the network computes something else, which the layers
below and the cross attention mostly make up for. With static shapes it is two reshapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

Call = Callable[..., Any]


def tiled(call: Call, tiles: int) -> Call:
    """Let a UNet's call, of ``(model, sample, ...)``, attend within tiles."""

    def run(model: Any, sample: torch.Tensor, *inputs: torch.Tensor) -> Any:
        height, width = sample.shape[-2:]
        with _within_tiles(model, height, width, tiles):
            return call(model, sample, *inputs)

    return run


@contextmanager
def _within_tiles(model: Any, height: int, width: int, tiles: int) -> Iterator[None]:
    """Replace the self-attention of the outermost blocks that attend; parameters keep names."""
    outermost = (_attentions(model.down_blocks), _attentions(reversed(model.up_blocks)))
    layers = [
        block.attn1
        for attentions in outermost
        for attention in attentions
        for block in attention.transformer_blocks
    ]
    for layer in layers:
        layer.forward = partial(_attend, layer.forward, (height, width), tiles)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _attentions(blocks: Iterable[torch.nn.Module]) -> Sequence[Any]:
    """The attention modules of the first block that has any."""
    return next((found for block in blocks if (found := getattr(block, "attentions", None))), ())


def _attend(
    forward: Call, size: tuple[int, int], tiles: int, hidden: torch.Tensor, **others: Any
) -> torch.Tensor:
    """Attention of (batch, places, channels) within tiles; ``size`` is that of the latents."""
    batch, places, channels = hidden.shape
    step = math.isqrt(size[0] * size[1] // places)
    height, width = (side // step // tiles for side in size)
    grid = (batch, tiles, height, tiles, width, channels)
    parts = hidden.reshape(grid).transpose(2, 3).reshape(-1, height * width, channels)
    attended = forward(parts, **others)
    swapped = (batch, tiles, tiles, height, width, channels)
    whole: torch.Tensor = attended.reshape(swapped).transpose(2, 3).reshape(hidden.shape)
    return whole
