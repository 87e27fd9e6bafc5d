"""Floats on a grid of 8-bit integers: weights per output channel, activations per tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WEIGHT_LEVELS: Final = 127
"""Weights lie in -127..127, so that zero is in the middle."""
REDUCED_LEVELS: Final = 63
"""Two products of such weights and 8-bit activations fit into 16 bits, in which CPUs without VNNI
add them up."""
_TOP: Final = 255


@dataclass(frozen=True)
class QuantizedWeight:
    """``integers * scales`` along ``axis``: int8 of the weight's shape, float32 per channel."""

    integers: NDArray[np.int8]
    scales: Floats
    axis: int


def quantize_weight(weight: Floats, axis: int, levels: int = WEIGHT_LEVELS) -> QuantizedWeight:
    """Round a weight to symmetric int8, each channel of ``axis`` on its own scale."""
    others = tuple(side for side in range(weight.ndim) if side != axis)
    peaks = np.abs(weight).max(axis=others)
    scales = np.where(peaks > 0, peaks / levels, 1).astype(np.float32)
    shape = [-1 if side == axis else 1 for side in range(weight.ndim)]
    rounded = np.rint(weight / scales.reshape(shape)).clip(-levels, levels)
    return QuantizedWeight(rounded.astype(np.int8), scales, axis)


@dataclass(frozen=True)
class Grid:
    """Where the uint8 of an activation lie: ``(integer - zero) * scale``."""

    scale: float
    zero: int

    @classmethod
    def spanning(cls, low: float, high: float) -> Grid:
        """The grid from ``low`` to ``high``, widened to hold 0, which padding needs exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / _TOP)) or 1.0
        return cls(scale, int(np.clip(np.rint(-low / scale), 0, _TOP)))

    def round_trip(self, values: Floats) -> Floats:
        """What is left of floats after they were integers on this grid."""
        integers = np.rint(values / np.float32(self.scale)) + self.zero
        floats: Floats = (integers.clip(0, _TOP) - self.zero) * np.float32(self.scale)
        return floats
