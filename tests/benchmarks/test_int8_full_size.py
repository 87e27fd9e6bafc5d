from __future__ import annotations

from pathlib import Path

from benchmarks import int8_full_size
from benchmarks.int8_table import int8_steps_table
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


def test_the_table_has_ratios_of_rounds() -> None:
    report = {
        "command": "python benchmarks/int8_full_size.py B",
        "machine": {"cpu": "a CPU"},
        "device": "cpu",
        "steps_ms": {"fp32": [4000.0, 8000.0, 4000.0], "int8": [2000.0, 6000.0, 1000.0]},
    }
    table = int8_steps_table(report)
    assert "| fp32 | 4.00 | 1 |" in table
    assert "| int8 | 2.00 | 0.50 [0.25 to 0.75] |" in table
