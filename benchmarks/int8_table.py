"""The table of what int8 gains at full size; apart, because measuring it needs the exporter."""

from __future__ import annotations

from benchmarks.paired import ratios
from benchmarks.reports import Report, markdown
from edgediffusion.timing import summarize


def int8_steps_table(report: Report) -> str:
    """Medians, and ratios to fp32 in the same round from the smallest to the largest."""
    rows = []
    for name, samples in report["steps_ms"].items():
        shares = sorted(ratios(samples, report["steps_ms"]["fp32"]))
        spread = f"{summarize(shares).median:.2f} [{shares[0]:.2f} to {shares[-1]:.2f}]"
        seconds = f"{summarize(samples).median / 1e3:.2f}"
        rows.append([name, seconds, "1" if name == "fp32" else spread])
    rounds = len(report["steps_ms"]["fp32"])
    return (
        f"Processor seconds of a guided step on {report['machine']['cpu']}, device "
        f"`{report['device']}`, one thread, {rounds} rounds; the grids are made up, which time "
        f"does not depend on. Command: `{report['command']}`.\n\n"
        + markdown(["graph", "step, s", "share"], rows)
    )
