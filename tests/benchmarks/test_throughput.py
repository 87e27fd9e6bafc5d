from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.energy import Counter, Counters
from benchmarks.reports import read_report
from benchmarks.throughput import (
    Metered,
    Options,
    gain,
    main,
    pictures_per_second,
    throughput,
    throughput_table,
)
from edgediffusion.errors import RequestError
from tests.benchmarks.samples import throughput_report

app = Typer()
app.command()(main)


def test_rates_count_the_pictures_of_a_call() -> None:
    report = throughput_report()
    assert pictures_per_second(report, "batch 1").median == pytest.approx(7.5)
    assert pictures_per_second(report, "batch 2").median == pytest.approx(7.5)


def test_gains_are_taken_round_by_round() -> None:
    report = throughput_report()
    found = gain(report, "streams 2")
    assert (found.low, found.median, found.high) == pytest.approx((1.5,) * 3)
    assert gain(report, "batch 2").median == pytest.approx(1)


def test_the_table_shows_energy_and_what_is_absent() -> None:
    table = throughput_table(throughput_report())
    line = next(line for line in table.splitlines() if line.startswith("| streams 2"))
    assert line.endswith("| 1.5 (1.5 to 1.5) | 3 | absent |")
    assert "Absent: GPU use (no nvidia-smi here)." in table


def test_a_call_keeps_the_energy_that_it_used() -> None:
    joules = iter([10.0, 12.0, 100.0, 107.0])
    counters = Counters((Counter("package-0", lambda: next(joules)),), {})
    metered = Metered(lambda: None, pictures=4, counters=counters)
    metered()
    metered()
    facts = metered.facts([5.0])  # the first call only warmed up
    assert facts == {
        "pictures": 4,
        "samples_ms": [5.0],
        "joules": [{"package-0": 7.0}],
        "gpu_percent": metered.gpu_percent[1:],
    }


def test_streams_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [Options().threads_of(streams) for streams in (1, 3, 16)] == [8, 2, 1]
    assert Options(threads=4).threads_of(16) == 4


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rounds": 0}, {"batch": (2, 0)}])
def test_impossible_counts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=rf"{next(iter(wrong))} must be at least 1, got 0"):
        Options(**wrong)


def test_real_pictures_are_counted(demo: Path) -> None:
    options = Options(device="cpu", batch=(1,), streams=(2,), steps=1, rounds=1, threads=1)
    said: list[str] = []
    report = throughput(demo, options, said.append)
    assert list(report["workloads"]) == ["batch 1", "streams 2"]
    assert report["workloads"]["streams 2"]["pictures"] == 4
    assert pictures_per_second(report, "streams 2").median > 0
    assert "round 1 of 1: batch 1" in said


def test_the_command_writes_a_report(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "throughput.json"
    arguments = [str(demo), "--json", str(file), "--batch", "1", "--streams", "", "--steps", "1"]
    result = CliRunner().invoke(app, [*arguments, "--rounds", "1", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert list(read_report(file, ["edgediffusion-throughput/1"])["workloads"]) == ["batch 1"]
    assert "| batch 1 |" in result.output


def test_odd_counts_are_refused() -> None:
    result = CliRunner().invoke(app, ["--batch", "one"])
    assert result.exit_code == 2
    assert "error: got --batch 'one', expected numbers like 1,2,4" in result.output
