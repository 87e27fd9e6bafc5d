"""The parity gate: every graph, run by the runtime's own engine, against PyTorch in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgediffusion.engine import EngineOptions, open_engine
from edgediffusion.errors import CheckpointError, ParityError
from edgediffusion.golden import golden_inputs, relative_l2
from edgediffusion.manifest import GATES, ComponentSpec, GoldenCase, GraphSpec, Parity
from edgediffusion_export.graphs import Network, Traced

Array = NDArray[np.generic]
Outputs = dict[str, NDArray[np.float32]]

INT8_LIMIT: Final = 0.3
"""An int8 graph that is further off than this is broken rather than coarse."""
INT8_HEADROOM: Final = 1.5
"""Other CPUs' kernels add up in another order, and a sum on the edge of two integers may go either
way; sums that overflow are off by far more."""


def reference(
    network: Network,
    module: torch.nn.Module,
    spec: GraphSpec,
    cases: Sequence[GoldenCase],
    tensors: dict[str, Array],
) -> list[Outputs]:
    """Compute a graph's outputs with PyTorch in float32, from the inputs that the graph gets."""
    inputs = (golden_inputs(case, spec, tensors) for case in cases)
    return [run_module(network, module, spec, each) for each in inputs]


def measure(
    spec: GraphSpec,
    folder: Path,
    cases: Sequence[GoldenCase],
    tensors: dict[str, Array],
    wanted: Sequence[Outputs],
    gate: float | None = None,
) -> Parity:
    """Run a graph on all cases and compare, then its parts, where it has some.

    gate : another one than that of the graph's precision.

    An int8 graph has the gate that it earns here: its own error and some headroom. Raises
    ParityError unless both pass the gate.
    """
    gate = gate or GATES.get(spec.precision, INT8_LIMIT)
    worst, max_abs = 0.0, 0.0
    for lean in (False, True) if spec.parts else (False,):
        with open_engine(spec, folder, "cpu", EngineOptions(lean=lean)) as engine:
            for case, expected in zip(cases, wanted, strict=True):
                got = engine(**golden_inputs(case, spec, tensors))
                for name, want in expected.items():
                    error = relative_l2(got[name], want)
                    if not error <= gate:
                        raise ParityError(_say(spec, name, error, gate))
                    worst = max(worst, error)
                    max_abs = max(max_abs, float(np.abs(got[name].astype(np.float32) - want).max()))
    if spec.precision == "int8":
        gate = _rounded(worst * INT8_HEADROOM)
    return Parity(l2=_rounded(worst), max_abs=_rounded(max_abs), gate=gate, cases=len(cases))


def gates_of(components: Mapping[str, ComponentSpec]) -> dict[str, float]:
    """The gates of a bundle: those of the float classes, and int8's as measured."""
    graphs = [graph for component in components.values() for graph in component.graphs]
    measured = [graph.parity.gate for graph in graphs if graph.precision == "int8"]
    return dict(GATES) | ({"int8": max(measured)} if measured else {})


def run_module(
    network: Network, module: torch.nn.Module, spec: GraphSpec, inputs: dict[str, Array]
) -> Outputs:
    """Compute a graph's outputs for one set of inputs; raises CheckpointError for NaN."""
    arrays = [inputs[tensor.name] for tensor in spec.inputs]
    tensors = [torch.from_numpy(a) if a.dtype.kind == "i" else _float32(a) for a in arrays]
    with torch.no_grad():
        outputs = Traced(network, module, spec.variant)(*tensors)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    for tensor in found:
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{network.part} computes NaN or infinity with PyTorch in float32: its weights are "
                "damaged, copy or download the checkpoint again"
            )
    return {t.name: o.numpy() for t, o in zip(spec.outputs, found, strict=True)}


def _float32(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _rounded(value: float) -> float:
    """Three digits are all that a measured error means."""
    return float(f"{value:.3g}")


def _say(spec: GraphSpec, output: str, error: float, gate: float) -> str:
    return (
        f"{spec.file}: {output} differs from PyTorch's float32 by a relative L2 of {error:.2g}, "
        f"the gate for {spec.precision} is {gate:g}. No bundle was written. The graph does not "
        "compute what the checkpoint computes: report this with the checkpoint's config.json, or "
        "try another version of torch within the supported range"
    )
