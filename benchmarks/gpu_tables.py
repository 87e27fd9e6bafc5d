"""The report of benchmarks/gpu.py as Markdown: times, ratios, memory, roofline, and the bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from benchmarks.gpu_pieces import OURS, RIVAL
from benchmarks.paired import estimate, ratios
from benchmarks.reports import Report, markdown
from edgediffusion.timing import summarize

PRODUCT: Final = "fp16 product"
COPY: Final = "copy on the GPU"
STEP: Final = "sd15/unet/512/1"
PICTURE: Final = "sd15/picture/512/1"


def best_ms(piece: Mapping[str, Any]) -> float | None:
    """The milliseconds that the GPU's own ceilings allow; None where they were not measured."""
    tops = piece["ceilings"]
    if not tops or "flops" not in piece:
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
    for name, samples in piece["samples_ms"].items():
        ms = summarize(samples).median
        yield [
            f"`{key}`",
            name,
            f"{ms:,.2f}",
            _ratio(samples, piece["samples_ms"].get(RIVAL)),
            f"{best / ms:.0%}" if best else "",
            f"{piece['memory_mib'][name]:,.0f}",
            f"{1e3 * piece['pictures'] / ms:,.1f}" if "/unet/" in key else "",
        ]
    for name, why in piece["absent"].items():
        yield [f"`{key}`", name, f"absent: {why}", "", "", "", ""]


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
    pieces = report["pieces"]
    step, picture = pieces.get(STEP), pieces.get(PICTURE)
    return markdown(
        ["bar", "limit", "measured", ""],
        [
            _bar(f"guidance step over {RIVAL}", 1.0, _step_ratio(step), ""),
            _bar("guidance step, ms", 10.0, _median(step), " ms"),
            _bar("picture of 50 steps, ms", 600.0, _median(picture), " ms"),
            _bar("own share of a step", 0.03, _own_share(picture), ""),
        ],
    )


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


def _own_share(piece: Mapping[str, Any] | None) -> float | None:
    shares = piece and piece.get("own_share")
    return summarize(shares).median if shares else None
