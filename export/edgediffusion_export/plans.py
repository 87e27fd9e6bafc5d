"""Engines of TensorRT for RTX, built ahead of time on a machine that needs no GPU.

One plan serves several kinds of GPU for hardly more disk than one kind. Turing (7.5) gets a plan of
its own, because NVIDIA advises against engines that serve it beside later kinds. A plan holds its
own copy of the weights: engines that could take them from outside do not build without a GPU
(TensorRT for RTX 1.7, with REFIT, REFIT_IDENTICAL, REFIT_INDIVIDUAL, with and without STRIP_PLAN).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from edgediffusion.manifest import GraphSpec, PlanSpec
from edgediffusion.tensorrt_build import build_plan, check_capabilities
from edgediffusion.tensorrt_library import TENSORRT_RTX
from edgediffusion_export.bundle import Staging
from edgediffusion_export.options import ExportOptions

DEFAULT_CAPABILITIES: Final = ("8.0", "8.6", "8.9", "12.0")
_ALONE: Final = ("7.5",)


def check_target(options: ExportOptions) -> None:
    """Raise DeviceError where plans are asked for and cannot be built, RequestError for a GPU."""
    if TENSORRT_RTX.device in options.targets:
        check_capabilities(TENSORRT_RTX.load(), options.compute_capabilities)


def plan_groups(options: ExportOptions) -> list[tuple[str, ...]]:
    """The kinds of GPU that share a plan, one group for each plan of a graph."""
    if TENSORRT_RTX.device not in options.targets:
        return []
    wanted = options.compute_capabilities or DEFAULT_CAPABILITIES
    ordered = sorted(set(wanted), key=lambda each: [int(part) for part in each.split(".")])
    alone: list[tuple[str, ...]] = [(each,) for each in ordered if each in _ALONE]
    together = tuple(each for each in ordered if each not in _ALONE)
    return [*alone, together] if together else alone


def write_plans(spec: GraphSpec, staging: Staging, groups: Iterable[tuple[str, ...]]) -> GraphSpec:
    """Build a plan of a staged graph for each group of GPUs; return the spec that lists them.

    Raises EngineError.
    """
    trt = TENSORRT_RTX.load()
    plans = []
    for group in groups:
        file = f"{spec.file.removesuffix('.onnx')}.rtx-{'-'.join(group)}.plan"
        plan = build_plan(trt, staging.folder / spec.file, capabilities=group)
        staging.write(file, [plan.data])
        plans.append(PlanSpec(file, trt.__version__, group))
    return msgspec.structs.replace(spec, plans=tuple(plans))
