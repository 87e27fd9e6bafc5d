"""SmoothQuant: share the outliers of an activation with the weight that it meets.

Xiao et al. 2022, arXiv:2211.10438, equation 4. A linear layer computes the same when each channel
of its input is divided by a factor and the weight's column is multiplied with it. The division is
folded into what makes the input: the norm before it, the values of an attention, or the first half
of a GEGLU. So the network computes what it did, and no node is added.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion_export.quantize.readings import Readings

ALPHA: Final = 0.5
_LEAST: Final = 1e-5


@dataclass(frozen=True)
class Fold:
    """Linear layers that share an input, and the module whose last outputs that input is.

    count : how many of the producer's outputs reach the input, from the first on.
    """

    producer: str
    consumers: tuple[str, ...]
    count: int | None = None


def folds(network: torch.nn.Module) -> Iterator[Fold]:
    """Yield where the transformer blocks of a UNet can be smoothed, in the order of the data."""
    for name, block in network.named_modules():
        if type(block).__name__ != "BasicTransformerBlock":
            continue
        parts: Any = block
        self_attention, cross = f"{name}.attn1", f"{name}.attn2"
        yield Fold(f"{name}.norm1", tuple(f"{self_attention}.to_{part}" for part in "qkv"))
        yield Fold(f"{self_attention}.to_v", (f"{self_attention}.to_out.0",))
        if parts.attn2 is not None:
            yield Fold(f"{name}.norm2", (f"{cross}.to_q",))
            yield Fold(f"{cross}.to_v", (f"{cross}.to_out.0",))
        yield Fold(f"{name}.norm3", (f"{name}.ff.net.0.proj",))
        if type(parts.ff.net[0]).__name__ == "GEGLU":
            width = parts.ff.net[2].in_features
            yield Fold(f"{name}.ff.net.0.proj", (f"{name}.ff.net.2",), width)


def smooth(network: torch.nn.Module, readings: Readings) -> set[str]:
    """Smooth a network in place, and the readings with it; returns the parameters that changed."""
    changed: set[str] = set()
    for fold in folds(network):
        consumers = [network.get_submodule(name) for name in fold.consumers]
        factors = smoothing_factors(readings[fold.consumers[0]].input.peaks(), consumers)
        inverse = torch.from_numpy(np.reciprocal(factors))
        producer = network.get_submodule(fold.producer)
        for parameter_name, parameter in producer.named_parameters(recurse=False):
            shape = (-1,) + (1,) * (parameter.ndim - 1)
            parameter.data[: fold.count] *= inverse.reshape(shape)
            changed.add(f"{fold.producer}.{parameter_name}")
        for name, consumer in zip(fold.consumers, consumers, strict=True):
            weight: Any = consumer.weight
            weight.data *= torch.from_numpy(factors)
            changed.add(f"{name}.weight")
            readings[name].input = readings[name].input.scaled(np.reciprocal(factors))
    return changed


def smoothing_factors(
    peaks: NDArray[np.float32], consumers: Sequence[torch.nn.Module]
) -> NDArray[np.float32]:
    """The factor of each input channel; 1 for channels that are never used."""
    weights: list[Any] = [consumer.weight for consumer in consumers]
    columns = np.max([weight.abs().amax(dim=0).numpy() for weight in weights], axis=0)
    factors = np.power(peaks, ALPHA) / np.power(np.maximum(columns, _LEAST), 1 - ALPHA)
    usable = (peaks > _LEAST) & (columns > _LEAST)
    return np.where(usable, factors, 1).astype(np.float32)
