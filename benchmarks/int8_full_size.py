"""What int8 gains in time at the size of Stable Diffusion 1.5, from an fp32 bundle of it.

    python benchmarks/int8_full_size.py BUNDLE --json benchmarks/results/MACHINE/int8_full_size.json

Calibrating that size takes hours on a small machine, and time does not depend on it: here the grids
are made up, so the graphs compute nothing of use, as fast as calibrated ones. The layers that stay
float are those of FLOAT. fp32 runs with the exact rewrites that the bundle has. Steps take turns;
times are of the processor, with one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import onnx_ir as ir
import typer
from msgspec.structs import replace
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.int8_table import int8_steps_table
from benchmarks.reports import head, write_report
from edgediffusion.engine import EngineOptions, open_engine
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.rounds import measure
from edgediffusion_export.quantize.dynamic import quantize_dynamically
from edgediffusion_export.quantize.integers import WEIGHT_LEVELS, Grid
from edgediffusion_export.quantize.layers import find_layers
from edgediffusion_export.quantize.sensitivity import LayerGrids
from edgediffusion_export.quantize.static import quantize_statically

SCHEMA: Final = "edgediffusion-int8-full-size/1"
FLOAT: Final = ("conv_in", "conv_out", "conv_shortcut")
GRID: Final = Grid.spanning(-8, 8)

console = Console(stderr=True)


class ByName:
    """In the place of a WeightStore: every initializer is its own parameter."""

    def __init__(self, model: ir.Model) -> None:
        values = model.graph.initializers.values()
        self._names = {id(v.const_value.numpy()): v.name for v in values if v.const_value}

    def trace(self, array: Any) -> tuple[list[str], tuple[str, ...]] | None:
        """The name of an initializer."""
        name = self._names.get(id(array))
        return ([name], ()) if name else None

    def derive(self, *_: object) -> None:
        """Nothing is stored, so nothing needs to be known."""


def main(
    bundle: str,
    out: Annotated[Path, typer.Option("--json")] = Path("int8_full_size.json"),
    rounds: int = 5,
    device: str = "cpu",
) -> None:
    """Time the UNet with two rows in fp32, with dynamic and with static int8."""
    opened = ed.Bundle.open(bundle)
    (size, *_) = opened.manifest.sizes
    graph = opened.graph("unet", batch=2, size=size)
    tensors = read_tensors(opened.file(opened.component_of(graph).golden))
    inputs = golden_inputs(graph.golden[0], graph, tensors)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        places = {"fp32": (graph, opened.path)}
        for name, quantize in (("int8-dynamic", _dynamic), ("int8", _static)):
            console.print(f"writing {name}")
            file = write(opened.path / graph.file, Path(folder) / f"{name}.onnx", quantize)
            places[name] = replace(graph, file=file.name, fp32=None), file.parent
        with ExitStack() as stack:
            calls: dict[str, Callable[[], object]] = {}
            for name, (spec, place) in places.items():
                console.print(f"loading {name}")
                engine = open_engine(spec, place, device, EngineOptions(threads=1))
                calls[name] = partial(stack.enter_context(engine), **inputs)
            samples = measure(calls, rounds, console.print, clock=time.process_time_ns)
    facts = {"bundle_sha256": opened.sha256, "device": device, "threads": 1, "clock": "processor"}
    steps = {name: [round(ms, 1) for ms in each] for name, each in samples.items()}
    report = {**head(SCHEMA), **facts, "float": FLOAT, "steps_ms": steps}
    write_report(out, report)
    print(int8_steps_table(report))


def write(source: Path, target: Path, quantize: Callable[[ir.Model, Any], object]) -> Path:
    """Write a graph anew with integers in it."""
    model = ir.load(source)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = ir.tensor(np.asarray(value.const_value.numpy()), name=value.name)
    quantize(model, ByName(model))
    ir.save(model, target, external_data=f"{target.name}.data")
    return target


def _dynamic(model: ir.Model, weights: Any) -> object:
    return quantize_dynamically(model, weights, WEIGHT_LEVELS)


def _static(model: ir.Model, weights: Any) -> object:
    layers = [layer for layer in find_layers(model, weights)]
    grids = {
        layer.names[0]: LayerGrids(GRID, GRID if layer.kind == "Conv" else None)
        for layer in layers
        if not any(part in layer.names[0] for part in FLOAT)
    }
    return quantize_statically(model, weights, grids, WEIGHT_LEVELS)


if __name__ == "__main__":
    typer.run(main)
