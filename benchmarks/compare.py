"""Compare two results files of the same workload; say what became slower beyond noise.

    python benchmarks/compare.py old.json new.json --max-regression 5%

Absolute times of two runs mean nothing on a machine whose speed changes by the minute. What is
compared is each time over the anchor's time of the same round (``paired.py`` has the statistics).
A row is a regression when its whole 95 % interval lies above the limit, and too noisy to conclude
when the interval reaches over it: measure more rounds then.

Exit code 0: no regression. 1: at least one. 2: the files cannot be compared, or the new one lacks
what the old one measured; the message says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import Estimate, Samples, Verdict, change, judge, ratios
from benchmarks.reports import read_report, said_errors
from edgediffusion.errors import RequestError

PEERS: Final = "edgediffusion-peers/1"
BENCH: Final = "edgediffusion-bench/1"
COLOURS: Final = {
    Verdict.FASTER: "green",
    Verdict.OK: "green",
    Verdict.REGRESSION: "bold red",
    Verdict.NOISY: "yellow",
}
_SAME_MACHINE: Final = ("cpu", "cpu_flags", "cores")
_HOW_OFTEN: Final = ("rounds", "counts", "warmup", "cold_starts", "limit_s", "device_reason")
"""Options that change how often something is measured, or say why it was, not what it is."""
_OWN_ROUNDS: Final = ("import", "cold_start")
"""Times of a bench that are measured after its rounds, without an anchor beside them."""


class _Anchor(msgspec.Struct):
    identity: dict[str, Any]
    samples_ms: list[float | None]


class _Contender(msgspec.Struct):
    samples_ms: dict[str, list[float | None]] = {}
    load_ms: list[float | None] = []
    cold_start_ms: list[float | None] = []
    sameness: dict[str, Any] | None = None


class _Peers(msgspec.Struct):
    workload: dict[str, Any]
    machine: dict[str, Any]
    contenders: dict[str, _Contender]
    anchor: _Anchor
    plan: dict[str, Any] = {}


class _Bench(msgspec.Struct):
    options: dict[str, Any]
    bundle: dict[str, Any]
    machine: dict[str, Any]
    samples_ms: dict[str, list[float | None]]
    anchor: _Anchor | None = None


@dataclass(frozen=True)
class Run:
    """What two results files must share, and what is compared.

    same : facts by name that must be equal.
    series : times by name, aligned with the rounds of ``anchor``.
    """

    same: dict[str, Any]
    anchor: Samples
    series: dict[str, Samples]


@dataclass(frozen=True)
class Row:
    """One time of both files, as the ratio new / old of its ratios to the anchor."""

    name: str
    ratio: Estimate
    verdict: Verdict


def read_run(path: Path) -> Run:
    """Read a results file of the peers or of ``edgediffusion bench``; raises RequestError."""
    report = read_report(path, (PEERS, BENCH))
    try:
        if report["schema"] == PEERS:
            return _peers_run(msgspec.convert(report, _Peers))
        bench = msgspec.convert(report, _Bench)
    except msgspec.ValidationError as error:
        raise RequestError(f"{path} is no whole {report['schema']} file: {error}") from error
    if bench.anchor is None:
        raise RequestError(
            f"{path} has no anchor, so its times cannot be compared with another run's: measure it "
            "again with this version of edgediffusion bench"
        )
    return _bench_run(bench, bench.anchor)


def _peers_run(report: _Peers) -> Run:
    series: dict[str, Samples] = {}
    same = {"schema": PEERS} | _what("workload", report.workload) | _what("plan", report.plan)
    for name, contender in report.contenders.items():
        whole = {"load": contender.load_ms, "cold start": contender.cold_start_ms}
        times = whole | contender.samples_ms
        series |= {f"{name} {time}": samples for time, samples in times.items()}
        if contender.sameness:
            same[f"flags of {name}"] = contender.sameness.get("flags", [])
    return _run(same, report.machine, report.anchor, series)


def _bench_run(report: _Bench, anchor: _Anchor) -> Run:
    workload = report.options | {"size": report.bundle.get("size")}
    same = {"schema": BENCH} | _what("workload", workload)
    series = {name: ms for name, ms in report.samples_ms.items() if name not in _OWN_ROUNDS}
    return _run(same, report.machine, anchor, series)


def _run(
    same: dict[str, Any], machine: dict[str, Any], anchor: _Anchor, series: Mapping[str, Samples]
) -> Run:
    same |= _named("anchor", anchor.identity)
    same |= _named("machine", {key: machine.get(key) for key in _SAME_MACHINE})
    rounds = len(anchor.samples_ms)
    aligned = {name: samples for name, samples in series.items() if len(samples) == rounds}
    return Run(same, anchor.samples_ms, aligned)


def _what(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return _named(name, {key: options[key] for key in options if key not in _HOW_OFTEN})


def _named(what: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{what} {key}": value for key, value in facts.items()}


def compare(old: Run, new: Run, limit: float, only: str = "") -> list[Row]:
    """Compare all times of ``old`` whose name contains ``only``.

    Raises RequestError where the runs do not hold the same measurements.
    """
    _require_same(old, new)
    before, after = _over_anchor(old, only), _over_anchor(new, only)
    if not before:
        raise RequestError(
            "the old file has no times to compare" + (f" with {only!r} in their name" * bool(only))
        )
    if lost := [name for name in before if name not in after]:
        raise RequestError(
            f"the new file lacks what the old one measured: {', '.join(lost)}. Measure it again, "
            "or compare a part with --only NAME"
        )
    found = {name: change(before[name], after[name]) for name in before}
    return [Row(name, ratio, judge(ratio, limit)) for name, ratio in found.items()]


def _require_same(old: Run, new: Run) -> None:
    """Raise RequestError that lists all facts that differ; a contender may be new or gone."""
    faults = [
        f"{key}: old {old.same.get(key)!r}, new {new.same.get(key)!r}"
        for key in dict.fromkeys((*old.same, *new.same))
        if old.same.get(key) != new.same.get(key)
        and not (key.startswith("flags of") and (key in old.same) != (key in new.same))
    ]
    if faults:
        raise RequestError(
            "these runs cannot be compared:\n  " + "\n  ".join(faults) + "\n"
            "Measure both on the same machine, with the same workload and the same anchor"
        )


def _over_anchor(run: Run, only: str) -> dict[str, list[float]]:
    """Every series over the anchor, those without a sample left out. Raises RequestError."""
    found = {}
    for name, samples in run.series.items():
        if only in name:
            try:
                found[name] = ratios(samples, run.anchor)
            except ValueError as error:
                raise RequestError(f"{name}: {error}; the results file is damaged") from error
    return {name: values for name, values in found.items() if values}


def parse_share(text: str) -> float:
    """Read ``5%`` or ``0.05``; raises RequestError for what is no share of at least 0."""
    number = text.strip()
    try:
        share = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        share = float("nan")
    if not 0 <= share < float("inf"):
        raise RequestError(f"got a limit of {text!r}, expected a share like 5% or 0.05")
    return share


def render(rows: list[Row], limit: float) -> Table:
    """Lay the rows out for people."""
    title = f"time over the anchor's time, new / old; limit {1 + limit:.3g}"
    name, verdict = (Column(text, no_wrap=True) for text in ("time", "verdict"))
    table = Table(name, "median", "95 % interval", "rounds", verdict, title=title)
    for row in rows:
        interval = f"{row.ratio.low:.3f} to {row.ratio.high:.3f}"
        if row.ratio.high == float("inf"):
            interval = "too few rounds"
        table.add_row(
            escape(row.name),
            f"{row.ratio.median:.3f}",
            interval,
            str(row.ratio.count),
            f"[{COLOURS[row.verdict]}]{row.verdict}[/]",
        )
    return table


@said_errors()
def main(
    old: Annotated[Path, typer.Argument(help="Results to compare with.")],
    new: Annotated[Path, typer.Argument(help="Results to judge.")],
    max_regression: Annotated[str, typer.Option(help="Slower by this much is too much.")] = "5%",
    only: Annotated[str, typer.Option(help="Compare the times whose name contains this.")] = "",
) -> None:
    """Compare two results files; exit 1 on a regression beyond noise, 2 on bad input."""
    console = Console(highlight=False)
    limit = parse_share(max_regression)
    rows = compare(read_run(old), read_run(new), limit, only)
    console.print(render(rows, limit))
    if any(row.verdict == Verdict.NOISY for row in rows):
        console.print("Some times are too noisy to conclude: measure both runs with more rounds.")
    if any(row.verdict == Verdict.REGRESSION for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
