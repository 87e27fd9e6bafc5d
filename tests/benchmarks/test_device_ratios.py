from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import device_ratios
from edgediffusion.engine_openvino import is_installed

REPORT: dict[str, Any] = {
    "samples_ms": {
        "unet.onnx": {"cpu fp32": [10, 20, 40], "openvino fp32": [5, 10, 60]},
        "vae.onnx": {"cpu fp32": [10, 10, 10], "openvino fp32": [11, 12, 13]},
    },
    "starts_ms": {"cpu, first": [3000, 1000, 2000], "cpu, next": [500, 400, 600]},
}


def test_ratios_are_medians_of_calls_side_by_side() -> None:
    assert device_ratios.devices_table(REPORT).splitlines() == [
        "| graph | openvino fp32 |",
        "|---|---:|",
        "| unet.onnx | 0.50 |",
        "| vae.onnx | 1.20 |",
    ]


def test_starts_are_medians_in_seconds() -> None:
    assert device_ratios.starts_table(REPORT).splitlines()[2:] == [
        "| cpu, first | 2.00 |",
        "| cpu, next | 0.50 |",
    ]


def test_a_short_run_measures_every_contender_side_by_side(tmp_path: Path) -> None:
    if not is_installed():
        pytest.skip("OpenVINO for this CPU is not installed")
    out = tmp_path / "devices.json"
    device_ratios.main(out=out, rounds=2, starts=1, threads=1, component=["vae_tiny_decoder"])
    report = json.loads(out.read_text())
    assert report["schema"] == "edgediffusion-devices/1"
    assert report["clock"] == "wall"
    (samples,) = report["samples_ms"].values()
    assert samples.keys() == {"cpu fp32", "openvino fp32", "openvino bf16"}
    assert all(len(times) == 2 and min(times) > 0 for times in samples.values())
    assert report["starts_ms"].keys() == device_ratios.STARTS.keys()
    assert all(len(times) == 1 and min(times) > 0 for times in report["starts_ms"].values())
