from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.plots import draw, main, to_svg
from tests.benchmarks.samples import MACHINE, peers_report, throughput_report, turned
from tests.benchmarks.test_roofline import report as roofline_of

app = Typer()
app.command()(main)


def bench_report() -> dict[str, Any]:
    samples = {"text_encoder": turned(1), "unet_b1": turned(5), "unet_b2": turned(9),
               "sampler_step": turned(0.1), "vae_decoder": turned(20)}  # fmt: skip
    return {
        "schema": "edgediffusion-bench/1",
        "machine": MACHINE,
        "options": {"device": "cpu"},
        "samples_ms": samples,
    }


def roofline_report() -> dict[str, Any]:
    return roofline_of(flops=1e9, moved=2e6, ms=20) | {"schema": "edgediffusion-roofline/1"}


REPORTS: list[tuple[Callable[[], dict[str, Any]], dict[str, list[str]]]] = [
    (peers_report, {"step_latency": ["ours", "unet_b2"], "stages": ["20 x unet_b2", "cheat"]}),
    (bench_report, {"step_latency": ["cpu", "unet_b1"], "stages": ["2 x text_encoder", "cpu"]}),
    (throughput_report, {"throughput": ["streams", "pictures a second"]}),
    (roofline_report, {"roofline": ["g.onnx", "fp32: 50 GFLOP/s, 5.0 GB/s"]}),
]


@pytest.mark.parametrize(("make", "expected"), REPORTS)
def test_every_report_has_its_drawings(
    make: Callable[[], dict[str, Any]], expected: dict[str, list[str]]
) -> None:
    drawn = {name: to_svg(figure) for name, figure in draw(make()).items()}
    assert drawn.keys() == expected.keys()
    for name, texts in expected.items():
        root = ElementTree.fromstring(drawn[name])
        said = " ".join(root.itertext())
        for text in texts:
            assert text in said


@pytest.mark.parametrize(("make", "expected"), REPORTS)
def test_the_same_report_gives_the_same_bytes(
    make: Callable[[], dict[str, Any]], expected: dict[str, list[str]]
) -> None:
    for name, figure in draw(make()).items():
        svg = to_svg(figure)
        assert svg == to_svg(draw(make())[name])
        assert not re.search(rb"20\d\d-\d\d-\d\d", svg)


def test_a_dot_is_drawn_for_each_round() -> None:
    (axes,) = draw(bench_report())["step_latency"].axes
    dots = [len(each.get_offsets()) for each in axes.collections if hasattr(each, "get_sizes")]
    assert dots == [8, 8]


def test_stages_add_up_to_a_picture() -> None:
    (axes,) = draw(bench_report())["stages"].axes
    end = max(patch.get_x() + patch.get_width() for patch in axes.patches)
    assert end == pytest.approx(1.5 * (2 * 1 + 20 * 9 + 20 * 0.1 + 20) / 1e3)


def test_contenders_that_were_not_measured_are_not_drawn() -> None:
    said = to_svg(draw(peers_report())["stages"]).decode()
    assert "gone" not in said


def test_the_command_writes_files_beside_each_other(tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text(json.dumps(bench_report()))
    result = CliRunner().invoke(app, [str(source), "-o", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert written == ["run.stages.svg", "run.step_latency.svg"]


def test_a_report_that_has_no_drawing_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "run.json"
    source.write_text('{"schema": "odd/1"}')
    result = CliRunner().invoke(app, [str(source), "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "has schema 'odd/1', known: edgediffusion-bench/1" in " ".join(result.output.split())
