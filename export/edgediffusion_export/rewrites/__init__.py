"""Exact rewrites of a traced graph, for the CPUs that gain by them.

A rewrite changes how a graph computes, not what: in real numbers both graphs are the same function
of the same parameters, and they differ by rounding, which the parity gate holds. The rewritten
graph is a further file beside the plain one and points at the same weights. Where a rewrite needs
weights in another form, it puts the operators that make them into the graph, on constants only: the
engine folds them when it loads, and the bundle keeps the parameters alone.

Which rewrites pay depends on how a CPU multiplies, so a graph has a form for each way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgediffusion.manifest import ANY_UNIT
from edgediffusion_export.rewrites.attention import fuse_attention
from edgediffusion_export.rewrites.gates import split_gates
from edgediffusion_export.rewrites.heads import pad_heads
from edgediffusion_export.rewrites.moments import expose_moments
from edgediffusion_export.rewrites.winograd import (
    AT_EVERY_STEP,
    AT_EVERY_STEP_IN_HALVES,
    ONCE_A_PICTURE,
    ONCE_A_PICTURE_IN_HALVES,
    TileAreas,
    filter_minimally,
)

Rewrite = Callable[[ir.Model], int]
"""Changes a graph in place and returns in how many places."""

FLOAT32: Final = ("attention", "winograd")
"""The rewrites for CPUs that compute in float32."""
HALVES: Final[Mapping[str, tuple[str, ...]]] = {
    ANY_UNIT: ("moments",),
    "amx": ("moments", "heads", "gates"),
    "avx512": ("moments", "winograd"),
}
"""Those for CPUs that compute in bf16, by the unit that multiplies. Where that is AMX, products
take a fraction of the time: tiles of Winograd's would cost more than they save, and zeros that fill
AMX's own tiles cost less than they save."""


def rewrite(
    model: ir.Model, names: Iterable[str], areas: TileAreas = AT_EVERY_STEP, halves: bool = False
) -> dict[str, int]:
    """Do the named rewrites in place; return how often each one that fired did.

    areas : how much memory convolutions may take for their speed, by the size of their maps.
    halves : for a CPU that multiplies in bf16.
    """
    wanted = set(names)
    known = done_by(areas, halves)
    counts = {name: done(model) for name, done in known.items() if name in wanted}
    RemoveUnusedNodesPass()(model)
    return {name: count for name, count in counts.items() if count}


def done_by(areas: TileAreas, halves: bool = False) -> Mapping[str, Rewrite]:
    """By the names that ``ExportOptions.rewrites`` takes, in the order that they are done in."""
    return {
        "attention": fuse_attention,
        "winograd": partial(filter_minimally, areas=areas, halves=halves),
        "moments": expose_moments,
        "heads": pad_heads,
        "gates": split_gates,
    }


def areas_for(component: str, halves: bool = False) -> TileAreas:
    """The UNet runs at every step, so a byte that makes it faster is worth more than elsewhere."""
    if component == "unet":
        return AT_EVERY_STEP_IN_HALVES if halves else AT_EVERY_STEP
    return ONCE_A_PICTURE_IN_HALVES if halves else ONCE_A_PICTURE
