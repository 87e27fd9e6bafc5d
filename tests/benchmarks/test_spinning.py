from __future__ import annotations

import json
from pathlib import Path

from benchmarks import spinning


def test_a_short_run_measures_every_way(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "spinning.json"
    spinning.main(str(demo), out=out, rounds=1)
    samples = json.loads(out.read_text())["samples"]
    assert [file.split("/")[0] for file in samples] == ["text_encoder", "unet", "vae_decoder"]
    for ways in samples.values():
        assert ways.keys() == spinning.WAYS.keys()
        assert all(each["call_ms"][0] > 0 <= each["idle_ms_per_s"][0] for each in ways.values())


def test_the_table_has_ratios_to_no_spinning() -> None:
    way = {"call_ms": [4.0] * 9, "idle_ms_per_s": [0.5] * 9}
    half = {"call_ms": [2.0] * 9, "idle_ms_per_s": [9.0] * 9}
    report = {"samples": {"a.onnx": {"none": way, spinning.OURS: half}}}
    rows = spinning.spinning_table(report).splitlines()[2:]
    assert "| 1.00 (1.00 to 1.00) | 0.5 |" in rows[0]
    assert "| 0.50 (0.50 to 0.50) | 9.0 |" in rows[1]
