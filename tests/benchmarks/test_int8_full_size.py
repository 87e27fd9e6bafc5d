from __future__ import annotations

from pathlib import Path

from benchmarks import int8_full_size
from benchmarks.reports import read_report


def test_all_three_run_and_nothing_is_left_behind(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    int8_full_size.main(str(demo), out, rounds=2)
    report = read_report(out, [int8_full_size.SCHEMA])
    assert {name: len(ms) for name, ms in report["steps_ms"].items()} == {
        "fp32": 2,
        "int8-dynamic": 2,
        "int8": 2,
    }
    assert list(tmp_path.iterdir()) == [out]
