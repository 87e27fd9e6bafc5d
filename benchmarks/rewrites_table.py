"""The table of what the exporter's rewrites save, from the report of ``rewrites.py``."""

from __future__ import annotations

from typing import Final

from benchmarks.paired import estimate, ratios
from benchmarks.reports import Report, markdown
from edgediffusion.timing import summarize

PLAIN: Final = "plain"
"""The form that nothing was rewritten in."""


def rewrites_table(report: Report) -> str:
    """The share of the plain graph's time that each form takes, with what it changed."""
    rows = []
    for file, forms in report["graphs"].items():
        base = forms[PLAIN]
        for name, form in forms.items():
            time_share = estimate(ratios(form["samples_ms"], base["samples_ms"]))
            counts = form["rewrites"].values()
            rows.append([
                f"{file.removesuffix('.onnx')}, {name}",
                str(sum(counts)),
                f"{summarize(form['samples_ms']).median / 1e3:.2f}",
                "1.00" if form is base else str(time_share),
                "-" if form is base else f"{form['l2_to_plain']:.1e}",
                f"{form['load_ms'] / 1e3:.1f}",
            ])  # fmt: skip
    seconds = f"{report['options']['clock']} seconds"
    columns = ["graph, rewrite", "places", seconds, "share", "L2 to plain", "load, s"]
    machine = report["machine"]
    return (
        f"{report['bundle']}, device `cpu`, ONNX Runtime {machine['libraries']['onnxruntime']}, "
        f"{machine['cores']} cores of {machine['cpu']} (shared and noisy), median of "
        f"{report['options']['rounds']} rounds, shares round by round with 95 % intervals. "
        f"Command: `{report['command']}`.\n\n" + markdown(columns, rows)
    )
