from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.decoder_tiles import tiles_table
from benchmarks.memory import Way, memory_table, ways


def way(peak: float, step: float, psnr: float | None) -> dict[str, object]:
    return {
        "peak_mib": peak,
        "resting_mib": peak / 4,
        "estimate_mib": 2 * peak,
        "weights_mib": 1000.0,
        "largest_working_mib": 500.0,
        "step_cpu_s": [step + 1, step],
        "stages_ms": {"load": 1500.0},
        "psnr_db": psnr,
    }


def test_a_first_start_comes_before_the_next_one_of_its_graphs() -> None:
    found = ways("64x64")
    assert [each.name for each in found if each.residency == "stream"] == [
        "stream, tiles, first start",
        "stream, tiles, next start",
    ]
    assert found[0] == Way(residency="all", tile=None, start="first")
    assert Way(**json.loads('{"residency": "one", "tile": null, "start": "next"}')) in found


def test_tiles_are_asked_for_where_there_are_some() -> None:
    (tiled,) = {each.tile for each in ways("32x64") if each.residency == "stream"}
    assert tiled == "32x64"
    assert Way(residency="stream", tile="32x64", start="next").request(1).decoder_tile == (32, 64)
    assert all(each.tile is None for each in ways(None))


def test_the_table_has_each_way_with_its_price() -> None:
    report = {
        "bundle": "toy",
        "steps": 2,
        "pictures": 2,
        "machine": {"cpu": "a CPU", "cores": 2, "libraries": {"onnxruntime": "1.32.0"}},
        "ways": {
            "all, next start": way(2000.0, 4.0, None),
            "stream, tiles, next start": way(600.0, 5.0, 33.33),
        },
    }
    table = memory_table(report)
    assert "| all, next start | 2,000 MiB | 500 MiB | 4,000 MiB | 1.00 | 1.5 s | equal |" in table
    assert "| stream, tiles, next start | 600 MiB | 150 MiB | 1,200 MiB | 1.25 | 1.5 s |" in table
    assert "| 33.3 dB |" in table


def test_tiles_have_a_median_and_a_worst_case() -> None:
    table = tiles_table({"psnr_db": {"128x128": {"64x64": [30.0, 20.0, 31.0]}}})
    assert "| 128x128 | 64x64 | 30.0 dB | 20.0 dB | 3 |" in table


def test_what_was_not_measured_is_left_out_of_the_table() -> None:
    alone = way(600.0, 5.0, None)
    del alone["psnr_db"]
    report = {
        "bundle": "toy",
        "steps": 2,
        "pictures": 2,
        "machine": {"cpu": "a CPU", "cores": 2, "libraries": {"onnxruntime": "1.32.0"}},
        "ways": {"stream, next start": alone},
    }
    table = memory_table(report)
    assert "| stream, next start | 600 MiB | 150 MiB | 1,200 MiB | - | 1.5 s | - |" in table


@pytest.mark.parametrize("name", ["memory_shapes.json", "memory_sd15.json"])
def test_no_way_took_more_than_its_estimate(name: str) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "xeon-avx512-2core"
    report = json.loads((results / name).read_text(encoding="utf-8"))
    assert report["ways"]
    assert all(each["peak_mib"] <= each["estimate_mib"] for each in report["ways"].values())
