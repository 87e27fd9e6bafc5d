"""Where the time of a graph goes, operator by operator, as ONNX Runtime's own profiling tells.

    python benchmarks/operator_profile.py BUNDLE --component unet --batch 2 --json FILE

The session has the options that the ``cpu`` device uses, so the nodes are those that run: after
ONNX Runtime's fusions, with its layout changes. Profiling itself costs time (some microseconds a
node), so the shares are for reading, not the milliseconds; ``roofline.py`` measures those.

OpenVINO's own counters cannot be reached through ONNX Runtime's plugin, which runs a graph as one
node. The report of that device says so in ``absent``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Final

import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reports import Report, bundle_facts, head, markdown, said_errors, write_report
from edgediffusion.bundle import Bundle
from edgediffusion.engine import EngineOptions, resolve_device
from edgediffusion.errors import EngineError, RequestError
from edgediffusion.golden import golden_inputs, read_tensors
from edgediffusion.manifest import PLAIN, GraphSpec

SCHEMA: Final = "edgediffusion-operators/1"
ABSENT: Final = {
    "openvino": "ONNX Runtime's plugin runs a graph as one node and gives no access to OpenVINO's "
    "counters"
}
_SUFFIX: Final = "_kernel_time"
_PRODUCTS: Final = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
_CONVOLUTIONS: Final = ("Conv", "FusedConv")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which graph to profile, and for how many runs."""

    component: str = "unet"
    batch: int = 1
    variant: str = PLAIN
    device: str = "cpu"
    threads: int = 0
    rounds: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RequestError(f"rounds must be at least 1, got {self.rounds}")


@dataclass(frozen=True)
class Node:
    """One node of the optimised graph.

    flops : operations of a convolution or a product, as ONNX Runtime runs it; 0 for the rest.
    samples_us : microseconds, one entry for each run.
    """

    name: str
    operator: str
    shapes: str
    flops: int
    samples_us: tuple[float, ...]


def profile(bundle: Bundle, options: Options) -> Report:
    """Profile one graph; raises RequestError where the bundle has none, EngineError if it fails.

    On a device that has no counters the report has no nodes and says why in ``absent``.
    """
    device = resolve_device(options.device)
    sizes = bundle.manifest.sizes
    spec = bundle.graph(
        options.component, batch=options.batch, size=sizes[0], variant=options.variant
    )
    report = head(SCHEMA) | bundle_facts(bundle)
    report |= {
        "options": asdict(options) | {"device": device},
        "graph": spec.file,
    }
    if device in ABSENT:
        return report | {"absent": ABSENT[device], "runs_us": [], "nodes": []}
    if device != "cpu":
        raise RequestError(f"device {device!r} cannot be profiled, expected cpu")
    events = _run_profiled(bundle, spec, options)
    runs, nodes = read_events(events)
    return report | {
        "absent": None,
        "runs_us": runs[1:],
        "nodes": [asdict(node) | {"samples_us": node.samples_us[1:]} for node in nodes],
    }


def _run_profiled(bundle: Bundle, spec: GraphSpec, options: Options) -> list[dict[str, Any]]:
    """Run a graph once to warm up and then for each round; return ONNX Runtime's events."""
    import onnxruntime

    from edgediffusion.engine_ort import session_options

    golden = bundle.file(bundle.manifest.components[options.component].golden)
    inputs = golden_inputs(spec.golden[0], spec, read_tensors(golden))
    chosen = session_options(EngineOptions(threads=options.threads))
    chosen.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        chosen.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(bundle.file(spec.files[-1])),
            sess_options=chosen,
            providers=["CPUExecutionProvider"],
        )
        for _ in range(options.rounds + 1):
            session.run(None, inputs)
        written = Path(session.end_profiling())
        del session
        events: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))
    return events


def read_events(events: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[Node]]:
    """Read a profile; return the microseconds of each run, and the nodes in the order they ran.

    Raises EngineError where the profile has no runs, or a node did not run in every one.
    """
    runs: list[float] = []
    samples: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("name") == "model_run":
            runs.append(float(event["dur"]))
        elif event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = event["args"]["node_index"]
            samples[key].append(float(event["dur"]))
            facts.setdefault(key, event)
    uneven = [facts[key]["name"] for key, each in samples.items() if len(each) != len(runs)]
    if not runs or uneven:
        what = f"nodes that did not run every time: {uneven[:3]}" if runs else "no runs"
        raise EngineError(f"ONNX Runtime's profile has {what}; expected every node in every run")
    return runs, [_node(facts[key], samples[key]) for key in samples]


def _node(event: Mapping[str, Any], samples: list[float]) -> Node:
    args = event["args"]
    inputs, outputs = (_shapes(args[f"{side}_type_shape"]) for side in ("input", "output"))
    operator = str(args["op_name"])
    shapes = f"{' '.join(map(_say, inputs))} -> {' '.join(map(_say, outputs))}"
    name = event["name"].removesuffix(_SUFFIX)
    return Node(name, operator, shapes, _flops(operator, inputs, outputs), tuple(samples))


def _shapes(typed: list[dict[str, list[int]]]) -> list[tuple[int, ...]]:
    return [tuple(shape) for each in typed for shape in each.values()]


def _say(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _flops(operator: str, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> int:
    """Operations of a node; packed weights are not among the inputs that the profile shows.

    The exporter's products never transpose their left side, so its last dimension is summed over.
    """
    if operator in _PRODUCTS:
        return 2 * prod(outputs[0]) * inputs[0][-1]
    if operator in _CONVOLUTIONS:
        kernel = next((shape for shape in inputs[1:] if len(shape) == len(inputs[0])), None)
        return 2 * prod(outputs[0]) * prod(kernel[1:]) if kernel else 0
    return 0


@dataclass(frozen=True)
class Part:
    """A part of a run: its microseconds, its share of the run, its GFLOP.

    The fastest of all runs counts: what a node costs, without what else the machine did.
    """

    us: float
    share: float
    gflop: float

    def cells(self) -> list[str]:
        """Microseconds, share and speed, for a table."""
        speed = f"{1e6 * self.gflop / self.us:,.0f}" if self.gflop and self.us else ""
        return [f"{self.us:,.0f}", f"{self.share:.1%}", speed]


def parts(report: Report) -> list[tuple[Mapping[str, Any], Part]]:
    """Every node with its part of a run that is made of fastest parts, in the order they ran."""
    fastest = [min(node["samples_us"]) for node in report["nodes"]]
    whole = sum(fastest) + between_nodes(report)
    return [
        (node, Part(us, us / whole, node["flops"] / 1e9))
        for node, us in zip(report["nodes"], fastest, strict=True)
    ]


def between_nodes(report: Report) -> float:
    """Microseconds that ONNX Runtime needs beside its nodes."""
    inside = zip(*(node["samples_us"] for node in report["nodes"]), strict=True)
    pairs = zip(report["runs_us"], inside, strict=True)
    return float(min(run - sum(nodes) for run, nodes in pairs))


def by_operator(report: Report) -> dict[str, tuple[int, Part]]:
    """Map each operator to its number of nodes and its part of a run, longest first."""
    groups: dict[str, list[Part]] = defaultdict(list)
    for node, part in parts(report):
        groups[node["operator"]].append(part)
    found = {
        kind: (len(group), Part(*(sum(each) for each in zip(*map(astuple, group), strict=True))))
        for kind, group in groups.items()
    }
    between = between_nodes(report)
    rest = 1 - sum(part.share for _, part in found.values())
    found["(between nodes)"] = 0, Part(between, rest, 0)
    return dict(sorted(found.items(), key=lambda item: -item[1][1].us))


def operator_table(report: Report, longest: int = 15) -> str:
    """The operators of a report and its ``longest`` nodes, as Markdown."""
    if report["absent"]:
        return f"No profile of `{report['graph']}`: {report['absent']}."
    kinds = [
        [kind, str(number or ""), *part.cells()]
        for kind, (number, part) in by_operator(report).items()
    ]
    slowest = sorted(parts(report), key=lambda item: -item[1].us)[:longest]
    nodes = [
        [f"`{node['name']}`", node["operator"], node["shapes"], *part.cells()]
        for node, part in slowest
    ]
    columns = ["microseconds", "share", "GFLOP/s"]
    return (
        f"`{report['graph']}`, {report['options']['rounds']} runs; the fastest of each node\n\n"
        + markdown(["operator", "nodes", *columns], kinds)
        + "\n\n"
        + markdown(["node", "operator", "shapes", *columns], nodes)
    )


@said_errors()
def main(
    bundle: Annotated[str | None, typer.Argument(help="Folder or name; default: the demo.")] = None,
    component: Annotated[str, typer.Option(help="Which network.")] = "unet",
    batch: Annotated[int, typer.Option(help="Which of its graphs.")] = 1,
    variant: Annotated[str, typer.Option(help="plain, prompt, chunks-2, ...")] = PLAIN,
    device: Annotated[str, typer.Option(help="cpu; others say why they tell nothing.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads; 0: one per core.")] = 0,
    rounds: Annotated[int, typer.Option(help="Profiled runs.")] = 20,
    json: Annotated[Path | None, typer.Option(help="Write every node's samples here.")] = None,
) -> None:
    """Profile one graph of a bundle and print its operators and slowest nodes."""
    options = Options(
        component=component,
        batch=batch,
        variant=variant,
        device=device,
        threads=threads,
        rounds=rounds,
    )
    report = profile(Bundle.open(bundle), options)
    if json is not None:
        write_report(json, report)
    sys.stdout.write(operator_table(report) + "\n")


if __name__ == "__main__":
    typer.run(main)
