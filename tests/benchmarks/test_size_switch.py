from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import size_switch
from edgediffusion.errors import RequestError


def test_a_bundle_of_one_size_is_refused(demo: Path) -> None:
    with pytest.raises(RequestError, match="has one size: export it with --size twice"):
        size_switch.main(str(demo))


def test_a_short_run_measures_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_bundle: Path
) -> None:
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "changed by the run"))
    out = tmp_path / "sizes.json"
    size_switch.main(str(parts_bundle), out=out, rounds=1)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert list(report["samples"]) == ["64x64", "128x64"]
    for samples in report["samples"].values():
        assert samples["load_ms"][0] > 0 < samples["rest_ms"][0]
    sizes = report["bytes"]
    weights = parts_bundle.glob("*/weights.safetensors")
    assert sizes["weights"] == sum(path.stat().st_size for path in weights)
    assert sizes["64x64"] > 0 < sizes["128x64"]


def test_the_table_has_disk_and_time() -> None:
    report = {
        "bundle": {"name": "two"},
        "machine": {"cores": 2, "cpu": "a CPU"},
        "steps": 1,
        "rounds": 9,
        "bytes": {"weights": 4 << 20, "64x64": 1 << 20},
        "samples": {"64x64": {"load_ms": [5.0] * 9, "rest_ms": [20.0] * 9}},
    }
    assert size_switch.sizes_table(report).splitlines()[-1] == "| 64x64 | 0.250 | 5 (5 to 5) | 20 |"
