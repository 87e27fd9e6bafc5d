"""What the layers of a network take and give along real trajectories of the checkpoint.

The activations of a diffusion model change their range from step to step, so a sample of each is
kept step by step, and every step counts the same when a grid is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion_export.quantize.integers import Grid

Floats = NDArray[np.float32]

ROWS: Final = 8
"""Places that are kept of a tensor at a step, each with all its channels."""
SHARES: Final = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""How much of the whole range a grid may span; what lies outside is clipped."""


@dataclass
class Reading:
    """One tensor along the trajectories, channel by channel.

    low, high : the range of each channel. samples : (rows, channels) of each call.
    """

    low: Floats = field(default_factory=lambda: np.full(1, np.inf, np.float32))
    high: Floats = field(default_factory=lambda: np.full(1, -np.inf, np.float32))
    samples: list[Floats] = field(default_factory=list)

    def add(self, tensor: torch.Tensor, axis: int) -> None:
        """Take in the tensor of one call, whose channels lie along ``axis``."""
        rows = tensor.detach().movedim(axis, -1).flatten(0, -2)
        low, high = (bound.numpy() for bound in torch.aminmax(rows, dim=0))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        places = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().long()
        self.samples.append(rows[places].numpy().copy())

    def peaks(self) -> Floats:
        """The largest magnitude of each channel."""
        peaks: Floats = np.maximum(-self.low, self.high)
        return peaks

    def scaled(self, factors: Floats) -> Reading:
        """The reading of the same tensor with each channel times a positive factor."""
        samples = [sample * factors for sample in self.samples]
        return Reading(self.low * factors, self.high * factors, samples)

    def grid(self) -> Grid:
        """The grid that loses least, in the mean over all calls of error over signal.

        A grid of the whole range is rarely it: few outliers would make it coarse for all.
        """
        low, high = float(self.low.min()), float(self.high.max())
        grids = [Grid.spanning(share * low, share * high) for share in SHARES]
        return min(grids, key=self._loss)

    def _loss(self, grid: Grid) -> float:
        samples = np.stack(self.samples)
        errors = np.square(grid.round_trip(samples) - samples).sum(axis=(1, 2))
        signals = np.square(samples).sum(axis=(1, 2))
        return float(np.mean(errors / np.maximum(signals, np.finfo(np.float32).tiny)))


@dataclass
class LayerReading:
    """A layer's input and output, and the multiplications of one call at the size of one graph."""

    input: Reading = field(default_factory=Reading)
    output: Reading = field(default_factory=Reading)
    multiplications: int = 0


Readings = dict[str, LayerReading]


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution."""
    return isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))


@contextmanager
def reading(network: torch.nn.Module, readings: Readings) -> Iterator[None]:
    """Fill ``readings``, by the layers' names, while the network runs."""
    handles = []
    for name, module in network.named_modules():
        if is_layer(module):
            into = readings.setdefault(name, LayerReading())
            handles.append(module.register_forward_hook(_reader(into)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(into: LayerReading) -> Any:
    def read(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        is_conv = isinstance(module, torch.nn.Conv2d)
        if inputs[0].ndim == 2:  # a row of time embeddings: nothing to save
            return
        into.input.add(inputs[0], 1 if is_conv else -1)
        if is_conv:
            into.output.add(output, 1)
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        channels = output.shape[1] if is_conv else output.shape[-1]
        into.multiplications = output.numel() // channels * weight.numel()

    return read
