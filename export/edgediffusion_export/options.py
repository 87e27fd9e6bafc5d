"""What can be asked of an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgediffusion.errors import DeviceError, RequestError, choices
from edgediffusion.options import NAMES
from edgediffusion_export.architecture import Size

INT8: Final = "int8"
INT8_DYNAMIC: Final = "int8-dynamic"
PRECISIONS: Final = ("fp32", "fp16", INT8, INT8_DYNAMIC)
STORES: Final = ("source", "fp32", "fp16")
TARGETS: Final = ("cpu", "cuda", "tensorrt-rtx")
REWRITES: Final = ("attention", "winograd", "moments", "heads", "gates")
"""What ``edgediffusion_export.rewrites`` can do, named here so that options need no onnx."""
MAX_BATCH: Final = 64
MAX_CHUNKS: Final = 16
MAX_TILES: Final = 8
MAX_PARTS: Final = 64


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export.

    checkpoint : a diffusers folder, or a hub id like ``ORG/NAME``.
    output : the folder to make; an existing bundle there is replaced only with ``force``.
    sizes : pictures' (height, width); empty means the size that the UNet was trained at.
    batches : batch sizes of the UNet's graphs; 2 lets guidance run as one call.
    chunks : the longest prompt that the UNet gets graphs for, in chunks of the text encoder.
    deepcache : add the graphs of the UNet that let requests take shallow steps.
    attention_tiles : tiles a side within which the UNet attends to itself, at the highest
        resolution where it does; 1 is the checkpoint's own attention.
    rewrites : names of the exact rewrites for CPUs (``REWRITES``).
    split : cut the UNet's graphs into so many parts as well, for machines with little memory.
    decoder_tiles : pictures' (height, width) that only the decoders get graphs for, so that larger
        pictures can be decoded tile by tile.
    precision : what the graphs compute in; fp16 is for GPUs, int8 and int8-dynamic for CPUs.
    calibrate : a text file with one prompt a line, for int8: pictures of them show which numbers
        the layers meet.
    reduce_range : let int8 weights use 7 bits, for CPUs without VNNI.
    store : what the weights are kept in; None means fp32 for fp32 graphs, else ``source``.
    targets : devices to prepare for: ``cuda`` adds graphs of its own to the plain ones,
        ``tensorrt-rtx`` built engines.
    compute_capabilities : the kinds of GPU that those engines are for; empty means the usual ones.
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
    split: int = 1
    decoder_tiles: tuple[Size, ...] = ()
    precision: str = "fp32"
    calibrate: Path | None = None
    reduce_range: bool = False
    store: str | None = None
    targets: tuple[str, ...] = ("cpu",)
    compute_capabilities: tuple[str, ...] = ()
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
        self._check_int8()
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
                raise DeviceError(_refusal(target))
        self._check_plans()
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
        if not 1 <= self.split <= MAX_PARTS:
            raise RequestError(f"split must be from 1 to {MAX_PARTS} parts, got {self.split}")
        if self.steps < 1:
            raise RequestError(f"steps must be at least 1, got {self.steps}")
        if self.sampler is not None and self.sampler not in NAMES:
            raise RequestError(f"unknown sampler {self.sampler!r}: {choices(self.sampler, NAMES)}")
        if not 0 <= self.guidance < float("inf"):
            raise RequestError(f"guidance must be a number of at least 0, got {self.guidance}")

    def _check_plans(self) -> None:
        """Engines of TensorRT for RTX compute in fp16, for GPUs that are named like ``8.9``."""
        if "tensorrt-rtx" in self.targets and self.precision != "fp16":
            raise RequestError(
                f"target 'tensorrt-rtx' computes in fp16, got precision {self.precision!r}: add "
                "--precision fp16"
            )
        if self.compute_capabilities and "tensorrt-rtx" not in self.targets:
            raise RequestError(
                "compute capabilities are for engines that are built at export: add --target "
                "tensorrt-rtx"
            )

    def _check_int8(self) -> None:
        if self.precision == INT8 and self.calibrate is None:
            raise RequestError(
                "precision int8 needs prompts to calibrate with: pass --calibrate FILE, a text "
                f"file with one prompt a line, or take --precision {INT8_DYNAMIC}"
            )
        if self.precision != INT8 and self.calibrate is not None:
            raise RequestError(
                f"calibration is for --precision {INT8} only, got {self.precision}: leave "
                "--calibrate out"
            )
        if self.reduce_range and self.precision not in (INT8, INT8_DYNAMIC):
            raise RequestError(
                f"a reduced range is for int8 weights, got precision {self.precision}: leave "
                "--reduce-range out"
            )


def _refusal(target: str) -> str:
    if target == "tensorrt":
        return (
            "device 'tensorrt' is no target: it builds its engines on the GPU that runs them, from "
            "any fp16 bundle. Leave --target out and add --precision fp16"
        )
    return f"unknown target {target!r}: {choices(target, TARGETS)}"
