from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from benchmarks.compare import main, parse_share
from edgediffusion.bench import BenchOptions
from edgediffusion.bench import bench as run_bench
from edgediffusion.bundle import Bundle
from edgediffusion.errors import RequestError

Report = dict[str, Any]
ROUNDS = 12

app = Typer()
app.command()(main)


def contender(anchor: list[float], factor: float, seed: int) -> Report:
    """Times that are ``factor`` times the anchor's, with 1 % of noise of their own."""
    noise = np.random.default_rng(seed).lognormal(0, 0.01, ROUNDS)
    times = [float(factor * a * n) for a, n in zip(anchor, noise, strict=True)]
    return {
        "status": "ok",
        "samples_ms": {"unet_b2": times, "vae_decode": [2 * t for t in times]},
        "load_ms": [9.0],
        "sameness": {"flags": []},
    }


def peers(seed: int = 0, factor: float = 1.0) -> Report:
    """A run on a machine whose speed changes threefold from round to round."""
    anchor = [float(10 * s) for s in np.random.default_rng(seed).uniform(1, 3, ROUNDS)]
    return {
        "schema": "edgediffusion-peers/1",
        "machine": {"cpu": "toy", "cpu_flags": ["avx2"], "cores": 2, "python": f"3.11.{seed}"},
        "workload": {"architecture": "shapes", "steps": [1, 4], "rounds": seed, "limit_s": seed},
        "plan": {"resident": True, "counts": {"cold_start": seed}},
        "rounds": ROUNDS,
        "reference": "diffusers",
        "anchor": {"identity": {"name": "sgemm", "size": 512}, "samples_ms": anchor},
        "contenders": {
            "ours": contender(anchor, 3 * factor, seed + 1),
            "diffusers": contender(anchor, 4.0, seed + 2),
        },
    }


def bench(**more: Any) -> Report:
    report = peers()
    return {
        "schema": "edgediffusion-bench/1",
        "machine": report["machine"],
        "bundle": {"name": "shapes", "size": "128x128", "sha256": "x"},
        "options": {"device": "cpu", "threads": 0, "steps": 4, "rounds": ROUNDS},
        "samples_ms": report["contenders"]["ours"]["samples_ms"] | {"cold_start": [1.0] * ROUNDS},
    } | more


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Compare two reports, or texts, through the command line."""

    def compare(old: Report | str, new: Report | str, *arguments: str) -> Result:
        paths = []
        for name, content in (("old", old), ("new", new)):
            path = tmp_path / f"{name}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(str(path))
        return CliRunner().invoke(app, [*paths, *arguments], env={"COLUMNS": "200"})

    return compare


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_same_program_passes_whatever_the_machine_did(run: Callable[..., Result]) -> None:
    result = run(peers(0), peers(5))
    assert result.exit_code == 0, result.output
    assert "ours unet_b2" in result.output
    assert result.output.count(" ok ") + result.output.count(" faster ") == 4


def test_a_regression_beyond_noise_exits_with_1(run: Callable[..., Result]) -> None:
    result = run(peers(0), peers(5, factor=1.2))
    assert result.exit_code == 1
    assert result.output.count("regression") == 2  # both stages of ours, none of diffusers
    assert "1.2" in result.output


def test_a_regression_below_the_limit_passes(run: Callable[..., Result]) -> None:
    assert run(peers(0), peers(5, factor=1.2), "--max-regression", "40%").exit_code == 0


def test_an_improvement_passes_and_says_so(run: Callable[..., Result]) -> None:
    result = run(peers(0), peers(5, factor=0.8))
    assert result.exit_code == 0
    assert result.output.count("faster") >= 2


def test_noise_is_said_and_passes(run: Callable[..., Result]) -> None:
    new = peers(5)
    times = new["contenders"]["ours"]["samples_ms"]["unet_b2"]
    new["contenders"]["ours"]["samples_ms"]["unet_b2"] = [
        t * (2 if i % 2 else 0.9) for i, t in enumerate(times)
    ]
    result = run(peers(0), new)
    assert result.exit_code == 0
    assert "too noisy to conclude" in result.output
    assert "measure both runs with more rounds" in result.output


def test_few_rounds_never_conclude(run: Callable[..., Result]) -> None:
    old, new = peers(0), peers(5, factor=3)
    for report in (old, new):
        report["anchor"]["samples_ms"] = report["anchor"]["samples_ms"][:4]
        for each in report["contenders"].values():
            each["samples_ms"] = {name: t[:4] for name, t in each["samples_ms"].items()}
    result = run(old, new)
    assert result.exit_code == 0
    assert "too few rounds" in result.output


def test_rounds_that_were_not_measured_are_left_out(run: Callable[..., Result]) -> None:
    new = peers(5, factor=1.2)
    new["contenders"]["ours"]["samples_ms"]["unet_b2"][:3] = [None] * 3
    result = run(peers(0), new, "--only", "ours unet_b2")
    assert result.exit_code == 1
    assert "9" in result.output


def changed(report: Report, **changes: Any) -> Report:
    report = copy.deepcopy(report)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = report
        for name in parents:
            place = place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchor__identity": {"name": "sgemm", "size": 1024}},
         "anchor size: old 512, new 1024"),
        ({"workload__steps": [20]}, r"workload steps: old \[1, 4\], new \[20\]"),
        ({"plan__resident": False}, "plan resident: old True, new False"),
        ({"machine__cpu": "other"}, "machine cpu: old 'toy', new 'other'"),
        ({"contenders__ours__sameness": {"flags": ["fewer steps"]}},
         r"flags of ours: old \[\], new \['fewer steps'\]"),
        ({"schema": "edgediffusion-peers/2"}, "schema 'edgediffusion-peers/2', did you mean"),
        ({"schema": None}, "schema None, known: edgediffusion-bench/1, edgediffusion-peers/1"),
        ({"anchor": None}, "missing required field `anchor`"),
        ({"anchor__samples_ms": ["quick"]}, r"Expected `float \| null`, got `str`"),
        ({"anchor__samples_ms": [0.0] * ROUNDS}, "ours unet_b2: got a sample of 0.0.*damaged"),
        ({"contenders__ours": None}, "new file lacks what the old one measured: ours unet_b2"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_exits_with_2(
    run: Callable[..., Result], change: dict[str, Any], message: str
) -> None:
    result = run(peers(0), changed(peers(5), **change))
    assert result.exit_code == 2
    assert re.search(message, words(result.output)), result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "new.json is not a JSON file"), ("[1]", "new.json has schema None, known: edge")],
)
def test_a_file_that_is_no_report_exits_with_2(
    run: Callable[..., Result], text: str, message: str
) -> None:
    result = run(peers(0), text)
    assert result.exit_code == 2
    assert message in words(result.output)


def test_a_missing_file_exits_with_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "gone.json"), "x.json"])
    assert result.exit_code == 2
    assert "gone.json cannot be read: No such file" in words(result.output)


def test_a_name_that_no_time_has_exits_with_2(run: Callable[..., Result]) -> None:
    result = run(peers(0), peers(5), "--only", "theirs")
    assert result.exit_code == 2
    assert "no times to compare with 'theirs' in their name" in words(result.output)


def test_a_vanished_contender_can_be_left_out(run: Callable[..., Result]) -> None:
    new = changed(peers(5), contenders__ours=None)
    assert run(peers(0), new, "--only", "diffusers").exit_code == 0


def test_a_bench_without_an_anchor_says_what_to_do(run: Callable[..., Result]) -> None:
    result = run(bench(), bench())
    assert result.exit_code == 2
    assert "has no anchor, so its times cannot be compared" in words(result.output)


def test_a_bench_with_an_anchor_is_compared(run: Callable[..., Result]) -> None:
    report = bench(anchor=peers()["anchor"])
    result = run(report, report)
    assert result.exit_code == 0, result.output
    assert "unet_b2" in result.output
    assert "cold_start" not in result.output  # it has rounds of its own
    other = bench(anchor=peers()["anchor"], options={"device": "openvino"})
    assert "workload device: old 'cpu', new 'openvino'" in words(run(report, other).output)


def test_a_real_bench_is_compared(demo: Path, run: Callable[..., Result]) -> None:
    options = BenchOptions(rounds=2, warmup=0, steps=1, cold_starts=0, device="cpu")
    report = run_bench(Bundle.open(demo), options)
    result = run(report, report)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "1.000" in line]
    assert len(rows) == len(report["samples_ms"]) >= 6
    assert all("too noisy to conclude" in row for row in rows)  # two rounds say nothing


def test_a_bench_is_no_run_of_peers(run: Callable[..., Result]) -> None:
    result = run(peers(), bench(anchor=peers()["anchor"]))
    assert result.exit_code == 2
    assert "schema: old 'edgediffusion-peers/1', new 'edgediffusion-bench/1'" in words(
        result.output
    )


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 12.5 % ", 0.125)])
def test_shares_are_read(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "five", "-1%", "nan", "inf"])
def test_other_limits_are_refused(text: str, run: Callable[..., Result]) -> None:
    with pytest.raises(RequestError, match=r"got a limit of .*, expected a share like 5% or 0.05"):
        parse_share(text)
    assert run(peers(), peers(), f"--max-regression={text}").exit_code == 2


def test_names_from_a_file_are_not_markup(run: Callable[..., Result]) -> None:
    old = peers()
    old["contenders"]["[bold]x"] = old["contenders"].pop("ours")
    assert "[bold]x unet_b2" in run(old, old).output
