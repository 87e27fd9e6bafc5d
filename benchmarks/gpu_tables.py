"""The report of benchmarks/gpu.py as Markdown: times, ratios, memory, roofline, and the bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from benchmarks.gpu_pieces import BARE, EAGER, OURS, RIVAL, UNCAPTURED, UNFUSED
from benchmarks.paired import estimate, ratios
from benchmarks.reports import Report, markdown
from edgediffusion.timing import summarize

PRODUCT: Final = "fp16 product"
COPY: Final = "copy on the GPU"
STEP: Final = "sd15/unet/512/1"
PICTURE: Final = "sd15/picture/512/1"
BARS_ARE_FOR: Final = "H200"
"""The GPU that the bars are for; on another one they say nothing."""


def tables(report: Report) -> str:
    """All that a run prints."""
    parts = (measured_on, pieces_table, ceilings_table, bars)
    return "\n\n".join(part(report) for part in parts)


def layout() -> str:
    """The tables of a made-up report, with dots in place of every figure: nothing was measured."""
    step = [OURS, UNCAPTURED, "tensorrt", UNFUSED, BARE, RIVAL, EAGER]
    made: Report = {
        "gpu": {"name": BARS_ARE_FOR},
        "pieces": {
            STEP: _made_up(step, absent={"tensorrt-rtx": "RequestError: ..."})
            | {"flops": 1.0, "bytes": 1.0},
            PICTURE: _made_up([OURS, UNCAPTURED, "tensorrt", RIVAL, EAGER]) | {"own_share": [1.0]},
        },
    }
    shown = (pieces_table(made), ceilings_table(made), bars(made))
    return "\n\n".join(_dotted(table, kept) for table, kept in zip(shown, (2, 1, 2), strict=True))


def _made_up(names: list[str], absent: Mapping[str, str] | None = None) -> dict[str, Any]:
    tops = {name: {"work": 1.0, "samples_ms": [1.0]} for name in (PRODUCT, COPY)}
    return {
        "pictures": 1,
        "samples_ms": {name: [1.0] for name in names},
        "memory_mib": dict.fromkeys(names, 1.0),
        "absent": absent or {},
        "ceilings": tops,
        "complete": True,
    }


def _dotted(table: str, kept: int) -> str:
    """Put dots for the figures of a table, whose first columns are no figures."""
    head, rule, *rows = table.splitlines()
    return "\n".join([head, rule, *(_dotted_row(row, kept) for row in rows)])


def _dotted_row(row: str, kept: int) -> str:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    shown = [c if i < kept or not c or c.startswith("absent") else "…" for i, c in enumerate(cells)]
    return f"| {' | '.join(shown)} |"


def measured_on(report: Report) -> str:
    """Which GPU it was, and with which libraries, in a line."""
    gpu, libraries = report["gpu"], report["machine"]["libraries"]
    used = [f"{name} {version}" for name, version in libraries.items() if name in _USED]
    driver = f"driver {gpu['driver']}" if gpu.get("driver") else "driver unknown"
    capability = ".".join(map(str, gpu["capability"]))
    facts = [f"compute capability {capability}", driver, *used, f"PyTorch {report['torch']}"]
    return f"{gpu['name']}: {', '.join(facts)}"


_USED: Final = ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def best_ms(piece: Mapping[str, Any]) -> float | None:
    """The milliseconds that the GPU's own ceilings allow; None where they were not measured."""
    tops = piece["ceilings"]
    if not {PRODUCT, COPY} <= set(tops) or "flops" not in piece:
        return None
    rates = {name: top["work"] / summarize(top["samples_ms"]).median for name, top in tops.items()}
    return float(max(piece["flops"] / rates[PRODUCT], piece["bytes"] / rates[COPY]))


def pieces_table(report: Report) -> str:
    """A row for each piece and contender."""
    columns = ["piece", "contender", "ms", f"times {RIVAL}", "of the ceiling", "MiB", "steps/s"]
    rows = [row for key, piece in report["pieces"].items() for row in _rows(key, piece)]
    return markdown(columns, rows)


def _rows(key: str, piece: Mapping[str, Any]) -> Iterator[list[str]]:
    best = best_ms(piece)
    shown = f"`{key}`" if piece["complete"] else f"`{key}`, not complete"
    for name, samples in piece["samples_ms"].items():
        ms = summarize(samples).median
        yield [
            shown,
            name,
            f"{ms:,.2f}",
            _ratio(samples, piece["samples_ms"].get(RIVAL)),
            f"{best / ms:.0%}" if best else "",
            f"{piece['memory_mib'][name]:,.0f}",
            f"{1e3 * piece['pictures'] / ms:,.1f}" if "/unet/" in key else "",
        ]
    for name, why in piece["absent"].items():
        yield [shown, name, f"absent: {why}", "", "", "", ""]


def _ratio(samples: list[float], rival: list[float] | None) -> str:
    if rival is None:
        return ""
    found = estimate(ratios(samples, rival))
    if found.high == float("inf"):
        return f"{found.median:.2f}"
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def ceilings_table(report: Report) -> str:
    """The ceilings of each piece's own run."""
    rows = [
        [f"`{key}`", *(_rate(piece["ceilings"].get(name), unit) for name, unit in _UNITS.items())]
        for key, piece in report["pieces"].items()
    ]
    return markdown(["piece", *(f"{name}, {unit}" for name, unit in _UNITS.items())], rows)


_UNITS: Final = {PRODUCT: "TFLOP/s", COPY: "GB/s"}


def _rate(top: Mapping[str, Any] | None, unit: str) -> str:
    if top is None:
        return ""
    scale = 1e9 if unit == "TFLOP/s" else 1e6
    return f"{top['work'] / summarize(top['samples_ms']).median / scale:,.0f}"


def bars(report: Report) -> str:
    """What was aimed at, and whether it was reached; what was not measured says so."""
    whole = {key: piece for key, piece in report["pieces"].items() if piece["complete"]}
    step, picture = whole.get(STEP), whole.get(PICTURE)
    rows = [
        _bar(f"guidance step over {RIVAL}", 1.0, _step_ratio(step), ""),
        _bar("guidance step, ms", 10.0, _median(step), " ms"),
        _bar("picture of 50 steps, ms", 600.0, _median(picture), " ms"),
        _bar("own share of a step", 0.03, _own_share(step, picture), ""),
    ]
    gpu = report["gpu"]["name"]
    if BARS_ARE_FOR not in gpu:
        rows = [[*row[:3], f"not judged: measured on {gpu}"] for row in rows]
    return markdown([f"bar, on an {BARS_ARE_FOR}", "limit", "measured", "verdict"], rows)


def _bar(name: str, limit: float, found: float | None, unit: str) -> list[str]:
    if found is None:
        return [name, f"{limit:g}{unit}", "not measured", ""]
    return [name, f"{limit:g}{unit}", f"{found:.3g}{unit}", "met" if found <= limit else "missed"]


def _median(piece: Mapping[str, Any] | None) -> float | None:
    samples = piece and piece["samples_ms"].get(OURS)
    return summarize(samples).median if samples else None


def _step_ratio(piece: Mapping[str, Any] | None) -> float | None:
    samples = piece["samples_ms"] if piece else {}
    if OURS not in samples or RIVAL not in samples:
        return None
    return estimate(ratios(samples[OURS], samples[RIVAL])).median


def _own_share(step: Mapping[str, Any] | None, picture: Mapping[str, Any] | None) -> float | None:
    """The part of a step in which the captured graph does not run.

    Outside of the engine's calls, as pictures tell; and within them the checks, the copies and
    what NumPy takes, which is what a call takes longer than the graph with nothing copied.
    """
    samples, shares = (step or {}).get("samples_ms", {}), (picture or {}).get("own_share")
    if not shares or not {OURS, BARE} <= set(samples):
        return None
    outside = summarize(shares).median
    inside = 1 - estimate(ratios(samples[BARE], samples[OURS])).median
    return outside + (1 - outside) * inside
