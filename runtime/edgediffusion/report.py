"""Tables for people, shared by the commands of the runtime and of the exporter."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table

from edgediffusion.manifest import Manifest
from edgediffusion.timing import summarize


def graph_table(manifest: Manifest) -> Table:
    """Return the graphs of a bundle with their L2 error to PyTorch, measured at export."""
    table = Table(Column("graph", no_wrap=True), "parameters", "precision", "L2 error", "gate")
    for component in manifest.components.values():
        for graph in component.graphs:
            measured = f"{graph.parity.l2:.1e}", f"{graph.parity.gate:g}"
            table.add_row(graph.file, f"{component.parameters:,}", graph.precision, *measured)
    return table


def say_notes(manifest: Manifest) -> list[str]:
    """Return what the export noted of the graphs, a line each."""
    graphs = [graph for component in manifest.components.values() for graph in component.graphs]
    return [f"note: {graph.file}: {graph.note}" for graph in graphs if graph.note]


def say_plans(manifest: Manifest) -> str:
    """Say for which GPUs a bundle has engines of TensorRT for RTX; empty where it has none."""
    graphs = [graph for each in manifest.components.values() for graph in each.graphs]
    plans = {(plan.version, plan.compute_capabilities) for g in graphs for plan in g.plans}
    return "; ".join(
        f"TensorRT for RTX {version}, compute capability {', '.join(capabilities)}"
        for version, capabilities in sorted(plans)
    )


def latency_table(report: dict[str, Any]) -> Table:
    """Return the medians of a benchmark report."""
    title = f"{report['bundle']['name']} {report['bundle']['size']} on {report['machine']['cpu']}"
    table = Table("ms", "median", "p90", "min", "samples", title=title)
    for name, samples in report["samples_ms"].items():
        s = summarize(samples)
        table.add_row(name, f"{s.median:.3f}", f"{s.p90:.3f}", f"{s.min:.3f}", str(s.count))
    return table
