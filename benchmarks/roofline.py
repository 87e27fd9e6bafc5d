"""How far each graph of a bundle is from what this machine can do.

    python benchmarks/roofline.py BUNDLE --json benchmarks/results/MACHINE/roofline.json

For every graph: operations and bytes counted from its file (``flops.py`` says how), the time it
takes, and the time that the machine's own ceilings allow at best: all operations at the rate of a
large matrix product, or all bytes at the rate of a large copy, whichever takes longer (Williams,
Waterman and Patterson, 2009). Graphs and ceilings are measured in turns, and shares are taken round
by round. Traffic that fits into the last-level cache is held against the cache's rate. Where a
rewritten file runs in a graph's place, its operations count.

On a machine that is busy with other work, ``--threads 1 --cpu-time`` counts the time that this
process was on a core, which waiting for one does not lengthen.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ceilings import Ceiling, ceilings, last_level_cache
from benchmarks.flops import count
from benchmarks.paired import Estimate, estimate, ratios
from benchmarks.reports import Report, bundle_facts, head, markdown, said_errors, write_report
from edgediffusion.bundle import Bundle
from edgediffusion.engine import Engine, EngineOptions, open_engine, resolve_device
from edgediffusion.engine_ort import cpu_path
from edgediffusion.errors import RequestError, choices
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.manifest import PLAIN, ComponentSpec, GraphSpec
from edgediffusion.rounds import measure
from edgediffusion.timing import summarize

SCHEMA: Final = "edgediffusion-roofline/1"
CPU_DEVICES: Final = ("cpu", "openvino")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure and how often.

    components : empty means all of them.
    cpu_time : count the time on a core instead of the time that passes; for one thread only.
    """

    device: str = "auto"
    threads: int = 0
    rounds: int = 20
    components: tuple[str, ...] = ()
    every_variant: bool = False
    cpu_time: bool = False

    def __post_init__(self) -> None:
        if self.cpu_time and self.threads != 1:
            raise RequestError(
                f"CPU time is the time of all threads together, got {self.threads} threads: "
                "use --threads 1"
            )
        if self.rounds < 1:
            raise RequestError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Standing:
    """A graph against the ceilings.

    bound : what limits it at best, ``compute`` or ``memory``.
    ceiling : the names of the ceilings of its arithmetic and of its memory traffic.
    intensity : matrix operations for each byte that must move.
    rate : matrix operations a second that it reaches, in GFLOP/s.
    share : the part of the ceiling that it reaches: best possible time over measured time.
    """

    bound: str
    ceiling: tuple[str, str]
    intensity: float
    rate: float
    share: Estimate


def roofline(
    bundle: Bundle, options: Options, on_progress: Callable[[str], None] = lambda _: None
) -> Report:
    """Measure the graphs of a bundle between the ceilings; return raw samples and counts."""
    device = resolve_device(options.device)
    if device not in CPU_DEVICES:
        raise RequestError(
            f"device {device!r} has no ceilings here, expected {' or '.join(CPU_DEVICES)}: "
            "benchmarks/ceilings.py measures the CPU"
        )
    report = head(SCHEMA)
    tops = {each.name: each for each in ceilings(options.threads)}
    with ExitStack() as stack:
        engines = {}
        for component, spec in chosen_graphs(bundle, options):
            on_progress(f"loading {spec.file}")
            engine = open_engine(spec, bundle.path, device, EngineOptions(threads=options.threads))
            engines[spec.file] = component, stack.enter_context(engine)
        workloads: dict[str, Callable[[], object]] = {name: top.run for name, top in tops.items()}
        for file, (component, engine) in engines.items():
            workloads[file] = prepared_call(bundle, component, engine)
        clock = time.process_time_ns if options.cpu_time else time.perf_counter_ns
        samples = measure(workloads, options.rounds, on_progress, clock=clock)
        graphs = {
            file: _graph_facts(engine, bundle.path / file, samples[file])
            for file, (_, engine) in engines.items()
        }
    report |= bundle_facts(bundle)
    return report | {
        "options": asdict(options) | {"device": device},
        "last_level_cache": last_level_cache(),
        "ceilings": {name: _ceiling_facts(top, samples[name]) for name, top in tops.items()},
        "graphs": graphs,
    }


def chosen_graphs(bundle: Bundle, options: Options) -> Iterator[tuple[ComponentSpec, GraphSpec]]:
    """Yield the graphs of the default size that were asked for; raises RequestError."""
    components = bundle.manifest.components
    for name in options.components:
        if name not in components:
            raise RequestError(f"unknown component {name!r}: {choices(name, components)}")
    for name in options.components or components:
        for spec in components[name].graphs:
            fits = spec.size in (None, bundle.manifest.sizes[0])
            if fits and (options.every_variant or spec.variant == PLAIN):
                yield components[name], spec


def prepared_call(bundle: Bundle, component: ComponentSpec, engine: Engine) -> Callable[[], object]:
    """A call of a graph on its own golden inputs."""
    tensors = read_tensors(bundle.file(component.golden))
    return partial(_call, engine, golden_inputs(engine.spec.golden[0], engine.spec, tensors))


def _call(engine: Engine, inputs: Mapping[str, Any]) -> object:
    return engine(**inputs)


def _ceiling_facts(top: Ceiling, samples: list[float]) -> dict[str, Any]:
    return {
        "resource": top.resource,
        "arithmetic": top.arithmetic,
        "work": top.work,
        "samples_ms": samples,
    }


def _graph_facts(engine: Engine, plain: Path, samples: list[float]) -> dict[str, Any]:
    """``file`` is what runs in the graph's place; ``plain_flops`` what the plain graph does."""
    path = cpu_path(engine.spec, plain, engine.arithmetic) if engine.device == "cpu" else plain
    costs = {each: count(each) for each in {path, plain}}  # mostly one and the same
    cost = costs[path]
    return {
        "file": path.name,
        "plain_flops": costs[plain].flops,
        "arithmetic": engine.arithmetic,
        "batch": engine.spec.batch,
        "flops": cost.flops,
        "weight_bytes": cost.weight_bytes,
        "activation_bytes": cost.activation_bytes,
        "unfused_bytes": cost.unfused_bytes,
        "samples_ms": samples,
    }


def standing(report: Report, file: str) -> Standing | None:
    """Judge one graph of a report; None where its arithmetic has no measured ceiling."""
    graph = report["graphs"][file]
    work = sum(n for kind, n in graph["flops"].items() if kind != "other")
    moved = graph["weight_bytes"] + graph["activation_bytes"]
    inside = moved <= report["last_level_cache"]
    top = best_ceiling(report, {"matrix"}, graph["arithmetic"])
    memory = best_ceiling(report, {"memory", "cache"} if inside else {"memory"})
    if top is None or memory is None:
        return None
    floors = {
        "compute": _floor(report["ceilings"][top], work),
        "memory": _floor(report["ceilings"][memory], moved),
    }
    bound = max(floors, key=lambda name: summarize(floors[name]).median)
    return Standing(
        bound,
        (top, memory),
        work / moved,
        work / 1e6 / summarize(graph["samples_ms"]).median,
        estimate(ratios(floors[bound], graph["samples_ms"])),
    )


def best_ceiling(report: Report, resources: set[str], arithmetic: str = "") -> str | None:
    """The name of the highest ceiling of some resources by its median, if there is one."""
    found = {
        name: rate(top)
        for name, top in report["ceilings"].items()
        if top["resource"] in resources and top["arithmetic"] == arithmetic
    }
    return max(found, key=lambda name: found[name], default=None)


def rate(top: Mapping[str, Any]) -> float:
    """A ceiling's median rate, in 10^9 operations or bytes a second."""
    return float(top["work"]) / 1e6 / summarize(top["samples_ms"]).median


def _floor(top: Mapping[str, Any], work: float) -> list[float]:
    """Milliseconds that ``work`` takes at a ceiling's rate, for each round."""
    return [ms * work / top["work"] for ms in top["samples_ms"]]


def roofline_table(report: Report) -> str:
    """The report's graphs and ceilings as Markdown."""
    columns = ["graph", "GFLOP", "MB", "FLOP/byte", "ms", "GFLOP/s", "bound", "of the ceiling"]
    rows = [_row(report, file) for file in report["graphs"]]
    tops = [
        [name, f"{rate(top):,.1f} {'GB/s' if top['arithmetic'] == '' else 'GFLOP/s'}"]
        for name, top in report["ceilings"].items()
    ]
    return markdown(columns, rows) + "\n\n" + markdown(["ceiling", "median"], tops)


def _row(report: Report, file: str) -> list[str]:
    graph, found = report["graphs"][file], standing(report, file)
    work = sum(n for kind, n in graph["flops"].items() if kind != "other") / 1e9
    moved = (graph["weight_bytes"] + graph["activation_bytes"]) / 1e6
    ms = summarize(graph["samples_ms"]).median
    counts = [f"{work:,.3g}", f"{moved:,.0f}", f"{1e3 * work / moved:.0f}"]
    name = file.replace(Path(file).name, graph.get("file", Path(file).name))
    facts = [f"`{name}`", *counts, f"{ms:,.2f}"]
    if found is None:
        return [*facts, f"{1e3 * work / ms:,.0f}", "-", f"no {graph['arithmetic']} ceiling here"]
    share = f"{found.share.median:.0%}"
    if found.share.high < float("inf"):
        share += f" ({found.share.low:.0%} to {found.share.high:.0%})"
    return [*facts, f"{found.rate:,.0f}", found.bound, share]


@said_errors()
def main(
    bundle: Annotated[str | None, typer.Argument(help="Folder or name; default: the demo.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write raw samples and counts here.")] = None,
    device: Annotated[str, typer.Option(help="What runs the graphs.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads; 0: one per core.")] = 0,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 20,
    component: Annotated[list[str] | None, typer.Option(help="Only this one; repeatable.")] = None,
    every_variant: Annotated[bool, typer.Option(help="Graphs of every variant.")] = False,
    cpu_time: Annotated[bool, typer.Option(help="Time on a core; with --threads 1.")] = False,
) -> None:
    """Count, measure, and say what share of the machine's ceilings each graph reaches."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    options = Options(
        device=device,
        threads=threads,
        rounds=rounds,
        components=tuple(component or ()),
        every_variant=every_variant,
        cpu_time=cpu_time,
    )
    with console.status("opening the bundle") as status:
        report = roofline(Bundle.open(bundle), options, status.update)
    if json is not None:
        write_report(json, report)
    sys.stdout.write(roofline_table(report) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before PyTorch is loaded
    typer.run(main)
