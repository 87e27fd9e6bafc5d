from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import run_all
from benchmarks.peers import INTERRUPTED
from benchmarks.reports import ROOT
from benchmarks.run_all import FULL_SIZE, STEPS, Step, draw_all, run_steps, start
from tests.benchmarks.samples import throughput_report

A, B, C = (Step(f"{name}.json", (f"{name}.py", "shapes"), peers=name == "b") for name in "abc")


class Runs:
    """Commands that end as they are told."""

    def __init__(self, *codes: int) -> None:
        self.codes = iter(codes)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        return next(self.codes)


def test_every_step_writes_its_file_into_the_folder(tmp_path: Path) -> None:
    runs = Runs(0, 0)
    assert run_steps([A, B], tmp_path, Path("home"), runs) == {}
    script = str(ROOT / "benchmarks" / "a.py")
    assert runs.commands[0] == [
        sys.executable,
        script,
        "shapes",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert runs.commands[1][3:5] == ["--home", "home"]


def test_a_program_that_fails_leaves_the_others(tmp_path: Path) -> None:
    runs = Runs(1, 0, 2)
    assert run_steps([A, B, C], tmp_path, None, runs) == {"a.json": 1, "c.json": 2}
    assert len(runs.commands) == 3


def test_ctrl_c_in_one_ends_the_rest(tmp_path: Path) -> None:
    runs = Runs(130)
    assert run_steps([A, B], tmp_path, None, runs) == {"a.json": 130}


def test_the_programs_are_there_and_files_have_names_of_their_own() -> None:
    for step in (*STEPS, FULL_SIZE):
        assert (ROOT / "benchmarks" / step.words[0]).is_file()
    assert len({step.result for step in (*STEPS, FULL_SIZE)}) == len(STEPS) + 1


def test_a_command_is_really_run() -> None:
    assert (
        start([sys.executable, "-c", "import benchmarks, edgediffusion; raise SystemExit(5)"]) == 5
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_a_command_ends_by_itself_after_ctrl_c(tmp_path: Path) -> None:
    interrupt = "import os, signal, sys, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(1)"
    kept = f"{interrupt}; open(sys.argv[1], 'w').close()"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    try:
        assert start([sys.executable, "-c", kept, str(tmp_path / "kept")]) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "kept").exists()


def test_what_can_be_drawn_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("{}", encoding="utf-8")
    (tmp_path / "t.json").write_text(json.dumps(throughput_report()), encoding="utf-8")
    assert draw_all(tmp_path) == [tmp_path / "plots" / "t.throughput.svg"]


def test_an_unknown_result_is_named(tmp_path: Path) -> None:
    app = Typer()
    app.command()(run_all.main)
    result = CliRunner().invoke(app, [str(tmp_path / "new"), "--only", "peer_shapes"])
    said = " ".join(re.sub(r"[│\s]+", " ", result.output).split())
    assert result.exit_code == 2
    assert "--only: no result contains 'peer_shapes': shapes.json, roofline_shapes.json" in said
    assert not (tmp_path / "new").exists()
