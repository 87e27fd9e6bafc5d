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
from benchmarks.contenders.models import Files
from benchmarks.peers import INTERRUPTED
from benchmarks.reports import ROOT
from benchmarks.run_all import (
    DEMO_EXPORTS,
    FULL_SIZE,
    FULL_SIZE_BUNDLE,
    FULL_SIZE_EXPORTS,
    FULL_SIZE_WORKLOAD,
    JUDGED,
    STEPS,
    Places,
    Step,
    draw_all,
    is_there,
    run_steps,
    start,
)
from benchmarks.workloads import find_workload
from tests.benchmarks.samples import throughput_report

A, B, C = Step("a.json", "a.py shapes"), Step("b.json", "peers.py b"), Step("c.json", "c.py")


class Runs:
    """Commands that end as they are told."""

    def __init__(self, *codes: int) -> None:
        self.codes = iter(codes)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        return next(self.codes)


def places(folder: Path, **given: str) -> Places:
    return Places(folder, Path("home"), {name: Path(at) for name, at in given.items()})


def test_every_step_writes_its_file_into_the_folder(tmp_path: Path) -> None:
    runs = Runs(0, 0)
    assert run_steps([A, B], places(tmp_path, bundle="here"), runs) == {}
    script = str(ROOT / "benchmarks" / "a.py")
    assert runs.commands[0] == [
        sys.executable,
        script,
        "shapes",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert runs.commands[1][3:5] == ["--home", "home"]
    assert "--given" not in runs.commands[1]


def test_full_size_folders_that_are_there_are_taken(tmp_path: Path) -> None:
    runs = Runs(0, 0)
    steps = [FULL_SIZE[0], Step("m.json", "memory.py {sd15}")]
    run_steps(steps, places(tmp_path, checkpoint="c", bundle="b"), runs)
    assert runs.commands[0][3:9] == [
        "--home",
        "home",
        "--given",
        "checkpoint=c",
        "--given",
        "bundle=b",
    ]
    assert runs.commands[1][2] == "b"
    made = places(tmp_path).command(steps[1])[2]
    assert Path(made) == Path("home", "models", "sd15-512x512", "bundle")


def test_the_folder_of_the_full_size_bundle_is_the_one_that_the_peers_make(tmp_path: Path) -> None:
    files = Files(find_workload(FULL_SIZE_WORKLOAD), tmp_path, {})
    made = Places(tmp_path, tmp_path).bundle(FULL_SIZE_BUNDLE)
    assert made == files.target("bundle")


def test_a_bundle_that_a_step_lacks_is_exported_first(tmp_path: Path) -> None:
    runs = Runs(0, 0, 0)
    step = Step("i.json", "exports.py fp32={demo_fp32} int8={demo_int8}")
    there = Places(tmp_path, tmp_path / "home").bundle("demo_fp32")
    there.mkdir(parents=True)
    (there / "manifest.json").touch()
    lacking = Places(tmp_path, tmp_path / "home")
    run_steps([step], lacking, runs)
    export, measure = runs.commands
    assert export[3:4] == ["export"]
    assert export[6].endswith("demo_int8")
    assert export[9:12] == ["--precision", "int8", "--calibrate"]
    assert Path(export[12]).is_file()
    assert measure[2:4] == [f"fp32={there}", f"int8={export[6]}"]


def test_full_size_bundles_are_exported_from_the_checkpoint_that_is_given(tmp_path: Path) -> None:
    given = places(tmp_path, checkpoint="c", bundle="b")
    step = Step("t.json", "exports.py fp32={sd15} parts={sd15_parts}")
    (command,) = given.exports(step)
    assert command[3:5] == ["export", "c"]
    assert command[7:11] == ["--size", "512x512", "--batch", "2"]
    (made,) = places(tmp_path).exports(step)
    assert Path(made[4]) == Path("home", "checkpoints", "sd15")


def test_an_export_that_fails_is_its_steps_failure(tmp_path: Path) -> None:
    runs = Runs(3, 0)
    here = Places(tmp_path, tmp_path / "home")
    assert run_steps([Step("i.json", "exports.py fp32={demo_fp32}"), A], here, runs) == {
        "i.json": 3
    }
    assert here.exported.is_dir()  # the exporter wants the folder above its own
    assert runs.commands[1][1].endswith("a.py")


def test_a_program_that_fails_leaves_the_others(tmp_path: Path) -> None:
    runs = Runs(1, 0, 2)
    assert run_steps([A, B, C], places(tmp_path), runs) == {"a.json": 1, "c.json": 2}
    assert len(runs.commands) == 3


def test_ctrl_c_in_one_ends_the_rest(tmp_path: Path) -> None:
    runs = Runs(130)
    assert run_steps([A, B], places(tmp_path), runs) == {"a.json": 130}


def test_the_programs_are_there_and_files_have_names_of_their_own() -> None:
    every = (*STEPS, *FULL_SIZE, *JUDGED)
    for step in every:
        assert (ROOT / "benchmarks" / step.words[0]).is_file()
        assert set(step.bundles) <= {FULL_SIZE_BUNDLE, *FULL_SIZE_EXPORTS, *DEMO_EXPORTS}
    assert len({step.result for step in every}) == len(every)


def test_a_result_that_was_broken_off_is_missing(tmp_path: Path) -> None:
    for name, text in {"no": '{"complete": false}', "odd": "{", "yes": "{}"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [is_there(tmp_path / name) for name in ("no", "odd", "none", "yes")] == [
        False,
        False,
        False,
        True,
    ]


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


def refuse(folder: Path, *options: str) -> str:
    """What the command says of options that it refuses, having made nothing."""
    app = Typer()
    app.command()(run_all.main)
    result = CliRunner().invoke(app, [str(folder / "new"), *options])
    assert result.exit_code == 2
    assert not (folder / "new").exists()
    return " ".join(re.sub(r"[│\s]+", " ", result.output).split())


def test_an_unknown_result_is_named(tmp_path: Path) -> None:
    said = refuse(tmp_path, "--only", "peer_shapes")
    assert "--only: no result contains 'peer_shapes': shapes.json, roofline_shapes.json" in said


def test_a_given_folder_is_checked_before_hours_of_work(tmp_path: Path) -> None:
    said = refuse(tmp_path, "--given", "bundl=.")
    assert "--given: unknown name 'bundl': did you mean bundle?" in said
    said = refuse(tmp_path, "--given", "bundle=/no/such")
    assert "--given: bundle: there is no folder /no/such" in said
