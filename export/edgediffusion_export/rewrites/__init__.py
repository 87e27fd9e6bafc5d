"""Exact rewrites of a traced graph, for machines that compute in float32 on a CPU.

A rewrite changes how a graph computes, not what: in real numbers both graphs are the same function
of the same parameters, and in float32 they differ by rounding, which the parity gate holds. The
rewritten graph is a second file beside the plain one and points at the same weights. Where a
rewrite needs weights in another form, it puts the operators that make them into the graph, on
constants only: the engine folds them when it loads, and the bundle keeps the parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgediffusion_export.rewrites.attention import fuse_attention
from edgediffusion_export.rewrites.winograd import filter_minimally

Rewrite = Callable[[ir.Model], int]
"""Changes a graph in place and returns in how many places."""

DONE_BY: Final[Mapping[str, Rewrite]] = {
    "attention": fuse_attention,
    "winograd": filter_minimally,
}
"""By the names that ``ExportOptions.rewrites`` takes, in the order that they are done in."""


def rewrite(model: ir.Model, names: Iterable[str]) -> dict[str, int]:
    """Do the named rewrites in place; return how often each one that fired did."""
    wanted = set(names)
    counts = {name: done(model) for name, done in DONE_BY.items() if name in wanted}
    RemoveUnusedNodesPass()(model)
    return {name: count for name, count in counts.items() if count}
