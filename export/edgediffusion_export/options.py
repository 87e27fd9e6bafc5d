"""What can be asked of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgediffusion.errors import DeviceError, RequestError, choices
from edgediffusion.options import NAMES
from edgediffusion_export.architecture import Size

PRECISIONS: Final = ("fp32", "fp16")
STORES: Final = ("source", "fp32", "fp16")
TARGETS: Final = ("cpu",)
REWRITES: Final = ("attention", "winograd")
"""What ``edgediffusion_export.rewrites`` can do, named here so that options need no onnx."""
MAX_BATCH: Final = 64
MAX_CHUNKS: Final = 16
MAX_TILES: Final = 8


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export.

    checkpoint : a diffusers folder, or a hub id like ``ORG/NAME``.
    output : the folder to make; an existing bundle there is replaced only with ``force``.
    sizes : pictures' (height, width); empty means the size that the UNet was trained at.
    batches : batch sizes of the UNet's graphs; 2 lets guidance run as one call.
    chunks : the longest prompt that the UNet gets graphs for, in chunks of the text encoder.
    deepcache : add the graphs of the UNet that let requests take shallow steps.
    attention_tiles : tiles a side within which the UNet's top resolution attends to itself; 1 is
        the checkpoint's own attention.
    rewrites : names of the exact rewrites for CPUs that compute in float32 (``REWRITES``).
    precision : what the graphs compute in; fp16 is for GPUs.
    store : what the weights are kept in; None means fp32 for fp32 graphs, else ``source``.
    steps, guidance, sampler : what a request means where it says nothing.
    """

    checkpoint: str
    output: Path
    sizes: tuple[Size, ...] = ()
    batches: tuple[int, ...] = (1, 2)
    chunks: int = 1
    deepcache: bool = False
    attention_tiles: int = 1
    rewrites: tuple[str, ...] = REWRITES
    precision: str = "fp32"
    store: str | None = None
    targets: tuple[str, ...] = ("cpu",)
    name: str | None = None
    license: str | None = None
    revision: str | None = None
    steps: int = 20
    guidance: float = 7.5
    sampler: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise RequestError(
                f"unknown precision {self.precision!r}: {choices(self.precision, PRECISIONS)}"
            )
        if self.store is not None and self.store not in STORES:
            raise RequestError(f"unknown store {self.store!r}: {choices(self.store, STORES)}")
        if self.precision == "fp16" and self.store == "fp32":
            raise RequestError(
                "graphs that compute in fp16 hold fp16 weights: leave --store out, or export with "
                "--precision fp32"
            )
        for name in self.rewrites:
            if name not in REWRITES:
                raise RequestError(f"unknown rewrite {name!r}: {choices(name, REWRITES)}")
        for target in self.targets:
            if target not in TARGETS:
                raise DeviceError(f"unknown target {target!r}: {choices(target, TARGETS)}")
        if not self.batches or not all(1 <= batch <= MAX_BATCH for batch in self.batches):
            raise RequestError(
                f"batch sizes must be from 1 to {MAX_BATCH}, got {list(self.batches)}"
            )
        if not 1 <= self.chunks <= MAX_CHUNKS:
            raise RequestError(f"chunks must be from 1 to {MAX_CHUNKS}, got {self.chunks}")
        if not 1 <= self.attention_tiles <= MAX_TILES:
            raise RequestError(
                f"attention tiles must be from 1 to {MAX_TILES} a side, got {self.attention_tiles}"
            )
        if self.steps < 1:
            raise RequestError(f"steps must be at least 1, got {self.steps}")
        if self.sampler is not None and self.sampler not in NAMES:
            raise RequestError(f"unknown sampler {self.sampler!r}: {choices(self.sampler, NAMES)}")
        if not 0 <= self.guidance < float("inf"):
            raise RequestError(f"guidance must be a number of at least 0, got {self.guidance}")
