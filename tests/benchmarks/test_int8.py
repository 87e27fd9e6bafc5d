from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgediffusion as ed
from benchmarks import int8
from benchmarks.reports import read_report


@pytest.fixture
def bundles(demo: Path) -> dict[str, ed.Bundle]:
    """The demo three times: it is equal to itself."""
    bundle = ed.Bundle.open(demo)
    return {"fp32": bundle, "int8-dynamic": bundle, "int8": bundle}


def test_a_run_goes_on_where_it_was(bundles: dict[str, ed.Bundle], tmp_path: Path) -> None:
    out = tmp_path / "int8.json"
    report = int8.begin(out, bundles)
    report["steps_ms"]["cpu"] = int8.step_ms(bundles, "cpu", rounds=6)
    int8.add_pictures(report, bundles, 1, out)
    again = int8.begin(out, bundles)
    assert again == json.loads(out.read_text())
    int8.add_pictures(again, bundles, 1, out)
    assert len(again["pictures"]["int8"]["right"]) == 1, "nothing is made twice"
    assert again["pictures"]["int8"]["psnr_db"] == [None], "the same picture"
    assert read_report(out, [int8.SCHEMA]) == again
    other = int8.begin(out, {**bundles, "another": bundles["fp32"]})
    assert other["steps_ms"] == {}


def test_the_table_has_ratios_and_differences() -> None:
    pictures = {"ms": [10.0] * 20, "right": [True] * 20, "psnr_db": [None] * 20}
    worse = {"ms": [6.0] * 20, "right": [True] * 15 + [False] * 5, "psnr_db": [40.0] * 20}
    report = {
        "machine": {"cpu": "a CPU"},
        "l2": {"fp32": 1e-7, "int8": 1e-2},
        "steps_ms": {"cpu": {"fp32": [4.0] * 10, "int8": [2.0] * 10}},
        "pictures": {"fp32": pictures, "int8": worse},
    }
    table = int8.int8_table(report)
    assert "| fp32 | 1.0e-07 | 1 | 1.00 | 100.0% | - | - |" in table
    assert "| int8 | 1.0e-02 | 0.50 (0.50 to 0.50) | 0.60 | 75.0% | -25.0 (-45.0 to " in table
    assert table.startswith("20 held-out captions")
