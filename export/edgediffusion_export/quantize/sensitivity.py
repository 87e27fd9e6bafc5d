"""What each layer's integers cost by themselves, measured at the network's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from edgediffusion.golden import relative_l2
from edgediffusion_export.quantize.integers import Grid, quantize_weight
from edgediffusion_export.quantize.readings import LayerReading
from edgediffusion_export.quantize.trajectories import Moment, predict

FLOAT_SHARE: Final = 0.1
"""So much of the multiplications may stay float, spent where it saves the most error."""


@dataclass(frozen=True)
class LayerGrids:
    """The integers of a layer: of what it takes and, for convolutions, of what it gives."""

    input: Grid
    output: Grid | None

    @classmethod
    def of(cls, reading: LayerReading) -> LayerGrids:
        """The grids that lose least."""
        output = reading.output.grid() if reading.output.samples else None
        return cls(reading.input.grid(), output)


def layer_errors(
    unet: torch.nn.Module,
    moments: Sequence[Moment],
    grids: Mapping[str, LayerGrids],
    levels: int,
) -> dict[str, float]:
    """The relative L2 error of the prediction where only one layer computes in integers."""
    wanted = [predict(unet, moment).numpy() for moment in moments]
    errors = {}
    for name, grid in grids.items():
        with _integers(unet.get_submodule(name), grid, levels):
            got = [predict(unet, moment).numpy() for moment in moments]
        pairs = zip(got, wanted, strict=True)
        squares = [relative_l2(one, other) ** 2 for one, other in pairs]
        errors[name] = float(np.sqrt(np.mean(squares)))
    return errors


def keep_in_float(errors: Mapping[str, float], multiplications: Mapping[str, int]) -> set[str]:
    """Choose the layers that cause the most error for what they compute, up to FLOAT_SHARE."""
    budget = FLOAT_SHARE * sum(multiplications[name] for name in errors)
    worst_first = sorted(errors, key=lambda n: errors[n] ** 2 / multiplications[n], reverse=True)
    kept: set[str] = set()
    for name in worst_first:
        if multiplications[name] <= budget:
            budget -= multiplications[name]
            kept.add(name)
    return kept


@contextmanager
def _integers(layer: Any, grids: LayerGrids, levels: int) -> Iterator[None]:
    """Let a layer compute what it would with integers."""
    weight = layer.weight.data
    made = quantize_weight(weight.numpy(), 0, levels)
    scales = made.scales.reshape((-1,) + (1,) * (weight.ndim - 1))
    layer.weight.data = torch.from_numpy(made.integers * scales)
    handles = [layer.register_forward_pre_hook(lambda _, inputs: _round(inputs[0], grids.input))]
    if (output := grids.output) is not None:
        handles.append(layer.register_forward_hook(lambda _, __, made: _round(made, output)))
    try:
        yield
    finally:
        layer.weight.data = weight
        for handle in handles:
            handle.remove()


def _round(tensor: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(tensor, grid.scale, grid.zero, 0, 255)
