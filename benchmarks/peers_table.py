"""The tables of runs of ``peers.py``: times, ratios to the reference, memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from benchmarks.paired import LEAST_ROUNDS, estimate, ratios
from benchmarks.reports import Report, markdown
from edgediffusion.timing import summarize

WHOLE: Final = ("cold_start", "load")
Contender = Mapping[str, Any]


def peers_table(report: Report) -> str:
    """Render a report of schema ``edgediffusion-peers/1`` as Markdown.

    Every contender has its row; one that was not measured says why.
    """
    reference = report["reference"]
    parts = [
        _setting(report),
        "Median milliseconds; a dash: the program does not expose that stage, or it was not "
        "measured.",
        _times(report),
        f"Time over that of `{reference}`, round by round: median and its 95 % interval (from "
        f"{LEAST_ROUNDS} rounds on; of fewer, the smallest and the largest in square brackets). "
        "Where the interval holds 1, the run cannot tell them apart.",
        _ratios(report, reference),
        f"Memory and disk in MiB. Same work, against `{reference}`: one prediction of the UNet on "
        "given inputs, final latents, and picture.",
        _weights(report),
        *_notes(report),
    ]
    return "\n\n".join(parts)


def peers_summary(full_size: Report, demo: Report) -> str:
    """Render what a reader wants first, of two workloads; the fastest program comes first.

    full_size : a workload of pictures that take minutes, of which a step and 20 steps are shown.
    demo : a small one, of which starting, memory and the installed size are shown.
    """
    rows = []
    for name, large in full_size["contenders"].items():
        small = demo["contenders"].get(name, {})
        picture = times_of(large).get("end_to_end_20", [])
        sizes = [small.get("peak_memory_mib"), small.get("environment_mib")]
        cells = [
            _seconds(times_of(large).get("unet_b2", [])),
            _seconds(picture),
            _seconds(times_of(small).get("cold_start", [])),
            *(f"{size:,.0f}" if size else "-" for size in sizes),
        ]
        rows.append((_middle(picture) or float("inf"), [f"`{name}`", *cells]))
    columns = ["", "UNet step, s", "20 steps, s", "demo: first picture, s"]
    columns += ["demo: peak memory, MiB", "installed, MiB"]
    machine = full_size["machine"]
    return (
        f"Step and picture of workload `{full_size['workload']['name']}`; medians, "
        f"{machine['cores']} cores of {machine['cpu']}. `first picture`: from the start of a "
        "process to a picture of 4 steps.\n\n"
        + markdown(columns, [cells for _, cells in sorted(rows, key=lambda row: row[0])])
    )


def _seconds(samples: list[float | None]) -> str:
    middle = _middle(samples)
    return "-" if middle is None else _short(middle / 1e3)


def _middle(samples: list[float | None]) -> float | None:
    known = [ms for ms in samples if ms is not None]
    return summarize(known).median if known else None


def stage_names(report: Report) -> list[str]:
    """Every time that some contender has, in the order of the report."""
    names = [
        name
        for contender in report["contenders"].values()
        for name, samples in times_of(contender).items()
        if any(ms is not None for ms in samples)
    ]
    return list(dict.fromkeys(names))


def times_of(contender: Contender) -> dict[str, list[float | None]]:
    """Samples by name: the stages, and starting and loading as a whole."""
    whole = {name: contender.get(f"{name}_ms") or [] for name in WHOLE}
    return whole | dict(contender.get("samples_ms") or {})


def _setting(report: Report) -> str:
    """What was measured, where and how often."""
    work, machine = report["workload"], report["machine"]
    stopped = "" if report["complete"] else " (stopped before its end)"
    return (
        f"Workload `{work['name']}`: {' x '.join(map(str, work['size']))} pixels, guidance "
        f"{work['guidance']:g}; {report['rounds']} rounds{stopped} on {machine['cores']} cores of "
        f"{machine['cpu']}, commit {report['commit'][:9]}."
    )


def _times(report: Report) -> str:
    names = stage_names(report)
    rows = []
    for name, contender in report["contenders"].items():
        times = times_of(contender)
        rows.append([f"`{name}`", *(_median(times.get(stage, [])) for stage in names)])
    return markdown(["", *names], rows)


def _median(samples: list[float | None]) -> str:
    median = _middle(samples)
    if median is None:
        return "-"
    return _short(median)


def _short(number: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _ratios(report: Report, reference: str) -> str:
    names = stage_names(report)
    base = times_of(report["contenders"].get(reference, {}))
    rows = [
        [f"`{name}`", *(_ratio(times_of(each).get(stage), base.get(stage)) for stage in names)]
        for name, each in report["contenders"].items()
        if name != reference
    ]
    return markdown(["", *names], rows)


def _ratio(samples: list[float | None] | None, base: list[float | None] | None) -> str:
    """Median and interval of the ratio in the rounds that have both."""
    if not samples or not base or len(samples) != len(base):
        return "-"
    pairs = ratios(samples, base)
    if not pairs:
        return "-"
    found = estimate(pairs)
    if found.high < float("inf"):
        return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"
    few = f" [{min(pairs):.2f} to {max(pairs):.2f}]" if len(pairs) > 1 else ""
    return f"{found.median:.2f}{few}"


def _weights(report: Report) -> str:
    sizes_of = ["peak memory", "model files", "environment"]
    columns = ["", "arithmetic", *sizes_of, "UNet L2", "latents L2", "PSNR, dB", "flags"]
    rows = []
    for name, contender in report["contenders"].items():
        same = contender.get("sameness") or {}
        sizes = [contender.get(f"{key}_mib") for key in ("peak_memory", "disk", "environment")]
        rows.append(
            [f"`{name}`", contender.get("precision") or "-",
             *(f"{size:,.0f}" if size else "-" for size in sizes),
             _number(same.get("unet_l2"), ".1e"),
             _number(same.get("latents_l2"), ".1e"),
             "identical" if same.get("identical") else _number(same.get("psnr_db"), ".1f"),
             ", ".join(same.get("flags", [])) or ("none" if same else "-")]
        )  # fmt: skip
    return markdown(columns, rows)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _notes(report: Report) -> list[str]:
    """What differs, what was not measured, and why."""
    notes = []
    for name, contender in report["contenders"].items():
        if note := contender.get("note"):
            notes.append(f"`{name}`: {note}")
        if contender["status"] != "ok":
            reason = " ".join(str(contender.get("reason") or "no reason given").split())
            notes.append(f"`{name}` is {contender['status']}: {reason}")
        for stage, reason in (contender.get("absent") or {}).items():
            notes.append(f"`{name}` has no {stage}: {reason}")
    return ["\n".join(f"- {note}" for note in notes)] if notes else []
