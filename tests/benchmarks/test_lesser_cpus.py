from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lesser_cpus
from benchmarks.lesser_cpus import ask, graphs_of, lesser_cpus_table, probe_openvino
from edgediffusion import Bundle
from edgediffusion.engine_openvino import is_installed

TIMES = {"openvino": [30.0, 20.0, 40.0], "cpu": [10.0, 10.0, 10.0]}
REPORT = {
    "openvino": {
        "AVX2": {
            "auto": "cpu",
            "errors": {"unet/a": 1e-6, "b": 2e-6},
            "samples_ms": {"unet/a": TIMES},
        },
        "SSE41": {"auto": "cpu", "error": "b.onnx does not load in OpenVINO: bad combination"},
    },
    "cpu": {
        "Nehalem": {"errors": {"a": 3e-7}},
        "Haswell": {"error": "qemu-x86_64 is not installed"},
    },
}  # fmt: skip


def test_the_table_says_what_failed_and_what_auto_takes() -> None:
    rows = lesser_cpus_table(REPORT).splitlines()[2:]
    assert rows[0].startswith("| AVX2 | openvino | 2.0e-06 | 3.00 (")
    assert rows[0].endswith("| cpu |")
    assert rows[1] == "| SSE41 | openvino | bad combination | | cpu |"
    assert rows[2].startswith("| Nehalem (SSE4.2, of 2008) | cpu | 3.0e-07 | not timed")
    assert "| qemu-x86_64 is not installed |" in rows[3]


def test_the_graphs_of_a_guided_picture_are_looked_at(demo: Path) -> None:
    assert [(g.file.split("/")[0], g.batch) for g in graphs_of(Bundle.open(demo))] == [
        ("text_encoder", 1),
        ("unet", 2),
        ("vae_decoder", 1),
    ]


def test_a_probe_runs_in_a_process_of_its_own(demo: Path) -> None:
    found = ask([], "cpu", str(demo), 0, {})
    assert max(found["errors"].values()) < 1e-4
    assert json.dumps(found)


def test_a_lesser_cpu_for_openvino(demo: Path) -> None:
    if not is_installed():
        pytest.skip("OpenVINO for this CPU is not installed")
    found = ask([], "openvino", str(demo), 2, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert (found["auto"], found["arithmetic"]) == ("cpu", "fp32")
    assert max(found["errors"].values()) < 1e-4
    assert all(len(ms) == 2 for s in found["samples_ms"].values() for ms in s.values())


def test_what_openvino_refuses_is_part_of_the_answer(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(bundle: Bundle, device: str) -> dict[str, float]:
        raise lesser_cpus.EngineError("b1.onnx does not load in OpenVINO: bad combination")

    monkeypatch.setattr(lesser_cpus, "errors_on", refuse)
    assert probe_openvino(str(demo), 1)["error"].endswith("bad combination")


def test_a_probe_that_fails_says_its_last_line(demo: Path) -> None:
    assert "is not a bundle" in ask([], "cpu", str(demo / "unet"), 0, {})["error"]


def test_an_emulator_that_is_not_there() -> None:
    assert ask(["no-such-emulator"], "cpu", "shapes", 0, {}) == {
        "error": "no-such-emulator is not installed"
    }
