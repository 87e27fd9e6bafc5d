"""A traced graph, fused for ONNX Runtime's CUDA provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)
from onnxscript.rewriter.ort_fusions.mha import fuse_mha2
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_layer_normalization

from edgediffusion.errors import CheckpointError
from edgediffusion.manifest import TEXT_ENCODERS
from edgediffusion_export.cuda_counts import fused_counts, fusible_counts, missing
from edgediffusion_export.cuda_rules import (
    ARG_MAX,
    BIAS_ADD,
    DOMAIN,
    GROUP_NORM,
    SILU,
    SKIP_GROUP_NORM,
    SPLIT_GELU,
)

Step = Callable[[ir.Model], object]

_FOR_PICTURES: Final[tuple[Step, ...]] = (
    fuse_skip_layer_normalization,
    lambda model: fuse_sdpa(model, apply_shape_inference=True),
    fuse_mha2,
    GROUP_NORM.apply_to_model,
    SILU.apply_to_model,
    SKIP_GROUP_NORM.apply_to_model,
    SPLIT_GELU.apply_to_model,
    BIAS_ADD.apply_to_model,
)
_FOR_TEXT: Final[tuple[Step, ...]] = (ARG_MAX.apply_to_model,)
"""A text encoder runs once a picture: it gets only what CUDA has no kernel for."""


def fuse_for_cuda(model: ir.Model, component: str) -> ir.Model | None:
    """Return a copy of a traced graph in the CUDA provider's operators; None if nothing changed.

    Its inputs, outputs and weights are those of ``model``. Raises CheckpointError where less was
    fused than the graph holds.
    """
    fused = model.clone()
    for step in _FOR_TEXT if component in TEXT_ENCODERS else _FOR_PICTURES:
        step(fused)
    fused.graph.sort()  # a fused sum and norm stands where the norm was, behind a Cast of the sum
    for tidy in (
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        ClearMetadataAndDocStringPass(),
    ):
        tidy(fused)
    if component not in TEXT_ENCODERS:
        _check_counts(model, fused, component)
    return None if _operators(fused) == _operators(model) else fused


def fused_operators(model: ir.Model) -> dict[str, int]:
    """How many of each of the CUDA provider's own operators a graph has, by name."""
    return dict(sorted(Counter(n.op_type for n in model.graph if n.domain == DOMAIN).items()))


def _operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def _check_counts(plain: ir.Model, fused: ir.Model, component: str) -> None:
    """Hold what was fused to what the plain graph has of it."""
    if less := missing(fused_counts(fused), fusible_counts(plain)):
        raise CheckpointError(
            f"{component}: fused only {', '.join(less)} for --target cuda. No bundle was "
            "written. Export without --target cuda, and report this with the checkpoint's "
            "config.json and the versions of torch and onnxscript"
        )
