from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgediffusion as ed
from benchmarks import exports
from benchmarks.reports import read_report
from edgediffusion.errors import RequestError


@pytest.fixture
def bundles(demo: Path) -> dict[str, ed.Bundle]:
    """The demo three times: it is equal to itself."""
    bundle = ed.Bundle.open(demo)
    return {"fp32": bundle, "int8-dynamic": bundle, "int8": bundle}


def test_a_run_goes_on_where_it_was(bundles: dict[str, ed.Bundle], tmp_path: Path) -> None:
    out = tmp_path / "int8.json"
    report = exports.begin(out, bundles)
    report["steps_ms"]["cpu"] = exports.step_ms(bundles, "cpu", rounds=6)
    exports.add_pictures(report, bundles, 1, out)
    again = exports.begin(out, bundles)
    assert again == json.loads(out.read_text())
    exports.add_pictures(again, bundles, 1, out)
    assert len(again["pictures"]["int8"]["right"]) == 1, "nothing is made twice"
    assert again["pictures"]["int8"]["psnr_db"] == [None], "the same picture"
    assert read_report(out, [exports.SCHEMA]) == again
    other = exports.begin(out, {**bundles, "another": bundles["fp32"]})
    assert other["steps_ms"] == {}


def test_the_table_has_ratios_and_differences() -> None:
    pictures = {"ms": [10.0] * 20, "right": [True] * 20, "psnr_db": [None] * 20}
    worse = {"ms": [6.0] * 20, "right": [True] * 15 + [False] * 5, "psnr_db": [40.0] * 20}
    report = {
        "command": "python benchmarks/exports.py fp32=A int8=B",
        "machine": {"cpu": "a CPU", "cpu_flags": ["avx2"]},
        "l2": {"fp32": 1e-7, "int8": 1e-2},
        "steps_ms": {"cpu": {"fp32": [4.0] * 10, "int8": [2.0] * 10}},
        "pictures": {"fp32": pictures, "int8": worse},
    }
    table = exports.exports_table(report)
    assert "| fp32 | 1.0e-07 | 1 | 1.00 | 100.0% | - | - |" in table
    assert "| int8 | 1.0e-02 | 0.50 (0.50 to 0.50) | 0.60 | 75.0% | -25.0 (-45.0 to " in table
    assert table.startswith("20 held-out captions")
    nothing: dict[str, list[object]] = {"ms": [], "right": [], "psnr_db": []}
    alone = exports.exports_table(report | {"pictures": {"fp32": nothing, "int8": nothing}})
    assert "| int8 | 1.0e-02 | 0.50 (0.50 to 0.50) |\n" in alone + "\n"
    assert alone.startswith("steps interleaved over 10 rounds")


def test_bundles_are_named(demo: Path) -> None:
    found = exports.read_bundles([f"a={demo}", f"b={demo}"])
    assert list(found) == ["a", "b"]
    with pytest.raises(RequestError, match="bundles: got 'a', expected NAME=BUNDLE"):
        exports.read_bundles(["a", f"b={demo}"])
    for given in ([f"a={demo}"], [f"a={demo}", f"a={demo}"]):
        with pytest.raises(RequestError, match="at least two are compared, each with a name"):
            exports.read_bundles(given)


def test_the_command_measures_steps_alone(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "steps.json"
    exports.main([f"a={demo}", f"b={demo}"], out, number=0, rounds=6, device=["cpu"])
    assert "| bundle | L2 error | step, cpu |" in capsys.readouterr().out
    assert list(read_report(out, [exports.SCHEMA])["steps_ms"]) == ["cpu"]
