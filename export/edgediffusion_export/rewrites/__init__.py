"""Exact rewrites of a traced graph, for machines that compute in float32 on a CPU.

A rewrite changes how a graph computes, not what: in real numbers both graphs are the same function
of the same parameters, and in float32 they differ by rounding, which the parity gate holds. The
rewritten graph is a second file beside the plain one and points at the same weights. Where a
rewrite needs weights in another form, it puts the operators that make them into the graph, on
constants only: the engine folds them when it loads, and the bundle keeps the parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgediffusion_export.rewrites.attention import fuse_attention
from edgediffusion_export.rewrites.winograd import (
    AT_EVERY_STEP,
    ONCE_A_PICTURE,
    TileAreas,
    filter_minimally,
)

Rewrite = Callable[[ir.Model], int]
"""Changes a graph in place and returns in how many places."""


def rewrite(
    model: ir.Model, names: Iterable[str], areas: TileAreas = AT_EVERY_STEP
) -> dict[str, int]:
    """Do the named rewrites in place; return how often each one that fired did.

    areas : how much memory convolutions may take for their speed, by the size of their maps.
    """
    wanted = set(names)
    counts = {name: done(model) for name, done in done_by(areas).items() if name in wanted}
    RemoveUnusedNodesPass()(model)
    return {name: count for name, count in counts.items() if count}


def done_by(areas: TileAreas) -> Mapping[str, Rewrite]:
    """By the names that ``ExportOptions.rewrites`` takes, in the order that they are done in."""
    return {
        "attention": fuse_attention,
        "winograd": partial(filter_minimally, areas=areas),
    }


def areas_for(component: str) -> TileAreas:
    """The UNet runs at every step, so a byte that makes it faster is worth more than elsewhere."""
    return AT_EVERY_STEP if component == "unet" else ONCE_A_PICTURE
