from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.reports import read_report
from benchmarks.rewrites import SCHEMA, Options, main
from benchmarks.rewrites_table import rewrites_table
from edgediffusion.errors import RequestError
from edgediffusion_export.rewrites import FLOAT32


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(main)
    return made


def test_every_form_that_differs_is_measured(app: typer.Typer, demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    words = [str(demo), "--component", "vae_decoder", "--rounds", "2", "--json", str(file)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (forms,) = read_report(file, [SCHEMA])["graphs"].values()
    assert set(forms) == {"plain", "attention", "all"}  # its maps have too few channels for more
    assert forms["plain"]["l2_to_plain"] == 0
    assert forms["all"]["rewrites"] == {"attention": 1}
    for form in forms.values():
        assert form["l2_to_plain"] < 1e-5
        assert len(form["samples_ms"]) == 2
    assert "| vae_decoder/128x128.b1, all | 1 |" in result.output


def test_shares_are_taken_round_by_round(demo: Path) -> None:
    form = {"rewrites": {}, "load_ms": 1000.0, "l2_to_plain": 0.0, "samples_ms": [2000.0] * 6}
    fast = form | {"rewrites": {"winograd": 3}, "l2_to_plain": 2e-6, "samples_ms": [1000.0] * 6}
    report = {
        "bundle": "sd",
        "command": "python benchmarks/rewrites.py sd",
        "machine": {"cores": 2, "cpu": "Xeon", "libraries": {"onnxruntime": "1"}},
        "options": {"rounds": 6, "clock": "processor"},
        "graphs": {"unet/b1.onnx": {"plain": form, "all": fast}},
    }
    lines = rewrites_table(report).splitlines()
    assert lines[-2] == "| unet/b1, plain | 0 | 2.00 | 1.00 | - | 1.0 |"
    assert lines[-1] == "| unet/b1, all | 3 | 1.00 | 0.5 (0.5 to 0.5) | 2.0e-06 | 1.0 |"


def test_each_rewrite_is_measured_by_itself_unless_told_otherwise() -> None:
    assert list(Options().forms) == ["plain", *FLOAT32, "all"]
    assert list(Options(each=False).forms) == ["plain", "all"]


def test_no_rounds_are_refused() -> None:
    with pytest.raises(RequestError, match="rounds must be at least 1, got 0"):
        Options(rounds=0)
