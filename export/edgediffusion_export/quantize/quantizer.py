"""From a network to the int8 layers of its graphs: measured once, applied to every graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion_export.graphs import Network
from edgediffusion_export.job import Job
from edgediffusion_export.options import INT8_DYNAMIC
from edgediffusion_export.quantize.dynamic import quantize_dynamically
from edgediffusion_export.quantize.integers import REDUCED_LEVELS, WEIGHT_LEVELS
from edgediffusion_export.quantize.readings import Readings, reading
from edgediffusion_export.quantize.sensitivity import LayerGrids, keep_in_float, layer_errors
from edgediffusion_export.quantize.smoothing import smooth
from edgediffusion_export.quantize.static import quantize_statically
from edgediffusion_export.quantize.trajectories import Moment, walk
from edgediffusion_export.weights import WeightStore

REPORT_FILE: Final = "int8.json"
MOMENTS: Final = 4
"""Places on the trajectories where each layer's error is measured."""
SIDE: Final = 32
"""Largest side of the latents there: a corner of a large picture does, in less time."""


@dataclass(frozen=True)
class LayerReport:
    """A layer: the share of the multiplications, the error by itself, and what was decided."""

    name: str
    share: float
    error: float
    int8: bool
    grids: LayerGrids


@dataclass
class Quantizer:
    """What the graphs of one network have in common.

    names : the checkpoint's names of the module's parameters.
    layers : all candidates with their grids; None for dynamic int8, which needs none.
    report : the file that says what was measured.
    smoothed : parameters of the module that SmoothQuant changed.
    """

    levels: int
    names: Mapping[str, str]
    layers: list[LayerReport] | None = None
    smoothed: set[str] = field(default_factory=set)
    report: str = ""

    def declare(self, weights: WeightStore, parameters: Mapping[str, NDArray[Any]]) -> None:
        """Tell where the smoothed parameters come from."""
        for name in sorted(self.names[name] for name in self.smoothed):
            array = parameters[name]
            weights.derive(array, [name], ("smooth",))
            if array.ndim == 2:
                weights.derive(array.T, [name], ("smooth", "transpose"))

    def apply(self, model: ir.Model, weights: WeightStore) -> list[str]:
        """Make the layers of a graph integer; returns the names of their weights."""
        if self.layers is None:
            return quantize_dynamically(model, weights, self.levels)
        small = [layer for layer in self.layers if layer.int8]
        grids = {self.names[f"{layer.name}.weight"]: layer.grids for layer in small}
        return quantize_statically(model, weights, grids, self.levels)

    def note(self) -> str:
        """Say what computes in int8 and what does not."""
        bits = "7-bit weights, " if self.levels == REDUCED_LEVELS else ""
        if self.layers is None:
            return f"{bits}int8 in all linear layers, with grids found at every call"
        small = [layer for layer in self.layers if layer.int8]
        return (
            f"{bits}int8 in {len(small)} of {len(self.layers)} layers with "
            f"{sum(layer.share for layer in small):.0%} of the multiplications; those that cost "
            f"most quality stay float, see {self.report}"
        )


def prepare(job: Job, network: Network, module: torch.nn.Module) -> Quantizer:
    """Choose how a network computes in int8; static int8 smooths the module in place."""
    options = job.options
    levels = REDUCED_LEVELS if options.reduce_range else WEIGHT_LEVELS
    parameters = [name for name, _ in module.named_parameters()]
    quantizer = Quantizer(levels, job.checkpoint.tensor_names(network.part, parameters))
    if options.precision == INT8_DYNAMIC:
        return quantizer
    assert options.calibrate is not None
    prompts = read_prompts(options.calibrate)
    job.begin(f"{network.name}: calibrating with {len(prompts)} prompts")
    readings: Readings = {}
    with reading(module, readings):
        walks = walk(job, module, prompts)
    quantizer.smoothed = smooth(module, readings)
    quantizer.layers = measure_layers(module, readings, _spread(walks), levels)
    quantizer.report = f"{network.name}/{REPORT_FILE}"
    job.staging.write(quantizer.report, [_report(job, prompts, quantizer.layers, levels)])
    return quantizer


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises RequestError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{path} cannot be read as a text file of prompts ({error}): pass --calibrate FILE "
            "with one prompt a line, in UTF-8"
        ) from None
    if prompts := [line.strip() for line in lines if line.strip()]:
        return prompts
    raise RequestError(
        f"{path} has no prompts to calibrate with: write one a line, 8 to 32 of the kind that the "
        "program will get"
    )


def measure_layers(
    module: torch.nn.Module, readings: Readings, moments: list[Moment], levels: int
) -> list[LayerReport]:
    """Give each layer its grids, measure its error, and decide which ones stay float."""
    reached = {name: each for name, each in readings.items() if each.input.samples}
    grids = {name: LayerGrids.of(each) for name, each in reached.items()}
    errors = layer_errors(module, moments, grids, levels)
    work = {name: each.multiplications for name, each in reached.items()}
    total = sum(work.values())
    kept = keep_in_float(errors, work)
    return [
        LayerReport(name, work[name] / total, errors[name], name not in kept, grids[name])
        for name in reached
    ]


def _spread(walks: list[list[Moment]]) -> list[Moment]:
    """Some moments of the walks: from the first step of one to the last step of another."""
    steps = np.linspace(0, len(walks[0]) - 1, MOMENTS).round().astype(int)
    chosen = [walks[i % len(walks)][step] for i, step in enumerate(steps)]
    return [replace(each, sample=each.sample[..., :SIDE, :SIDE]) for each in chosen]


def _report(job: Job, prompts: list[str], layers: Iterable[LayerReport], levels: int) -> bytes:
    """What was measured, for people and for audits."""
    rows = [asdict(layer) for layer in layers]
    report = {
        "schema": "edgediffusion-int8/1",
        "prompts": prompts,
        "steps": job.options.steps,
        "guidance": job.options.guidance,
        "weight_levels": levels,
        "layers": sorted(rows, key=lambda row: -row["error"]),
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
