from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgediffusion as ed
from benchmarks.contenders import models, protocol
from benchmarks.contenders.models import EXPORTERS, Files, NotMade, made_once
from benchmarks.contenders.process import ROOT, Process, Refused, WorkerLost, clean_environment
from benchmarks.contenders.with_stable_diffusion_cpp import trailing_sigmas
from benchmarks.environments import ENVIRONMENTS, Installed
from benchmarks.workloads import SCHEDULER, WORKLOADS
from tests.checkpoints import SCHEDULERS, write_tiny_checkpoint

FAKE = (sys.executable, "-m", "tests.benchmarks.fake_worker")
LIMIT_S = 600.0


# --- the protocol --------------------------------------------------------------------------------


def test_a_worker_answers_and_ends() -> None:
    with Process(FAKE) as process:
        hello = process.ask("hello", LIMIT_S, options={"absent": ["unet_b1"]})
        assert hello == {
            "versions": {"fake": "1.0"},
            "absent": {"unet_b1": "hidden"},
        }
        assert process.ask("memory", LIMIT_S).keys() == {"peak_mib"}
    process.close()  # twice is fine


def test_a_worker_refuses_what_it_does_not_know() -> None:
    with Process(FAKE) as process:
        with pytest.raises(Refused, match="ValueError: unknown op 'sing'"):
            process.ask("sing", LIMIT_S)
        with pytest.raises(Refused, match="ValueError: no stage 'unet_b3', there are"):
            process.ask("run", LIMIT_S, stage="unet_b3")


def test_a_worker_that_has_gone_is_lost() -> None:
    with Process((sys.executable, "-c", "print('hello')")) as process:
        with pytest.raises(WorkerLost, match=r"printed rubbish instead of an answer: 'hello'"):
            process.ask("hello", LIMIT_S)
        for _ in range(2):
            with pytest.raises(WorkerLost, match=r"ended with exit code 0 while asked for 'load'"):
                process.ask("load", LIMIT_S)


@pytest.mark.skipif(sys.platform == "win32", reason="ends itself by a signal")
def test_a_worker_that_is_killed_says_by_what() -> None:
    killed = "import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)"
    with (
        Process((sys.executable, "-c", killed)) as process,
        pytest.raises(WorkerLost, match=r"ended with SIGKILL while asked for 'hello'$"),
    ):
        process.ask("hello", LIMIT_S)


def test_a_worker_that_hangs_is_lost_and_killed() -> None:
    process = Process((sys.executable, "-c", "import time; time.sleep(3600)"))
    with pytest.raises(WorkerLost, match=r"hung: no answer to 'hello' within 0.1 s"):
        process.ask("hello", 0.1)
    process.close()
    assert process._child.returncode is not None


def test_workers_are_offline_and_see_nothing_of_this_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KEPT", "1")
    environment = clean_environment()
    assert not {"PYTHONPATH", "OMP_NUM_THREADS"} & set(environment)
    assert (environment["KEPT"], environment["HF_HUB_OFFLINE"]) == ("1", "1")


def test_every_worker_has_the_runtimes_clock_without_the_runtime() -> None:
    timing = protocol.runtime_module("timing")
    ticks = iter([0, 7_000_000])
    assert timing.time_call(lambda: None, lambda: next(ticks)) == 7.0
    assert protocol.runtime_module("timing") is timing
    assert timing.__name__ == "edgediffusion_timing"


def test_the_protocol_needs_the_standard_library_only() -> None:
    code = (
        "import sys; from benchmarks.contenders import protocol; "
        "protocol.runtime_module('timing'); protocol.runtime_module('machine'); "
        "print(sorted({'numpy', 'edgediffusion', 'msgspec'} & set(sys.modules)))"
    )
    python = [sys.executable, "-c", code]
    loaded = subprocess.run(python, cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_last_line_of_an_error_is_what_it_says() -> None:
    assert protocol.describe(RuntimeError("at file.cpp:7\n\nout of memory\n")) == (
        "RuntimeError: out of memory"
    )
    assert protocol.describe(MemoryError()) == "MemoryError: no message"


# --- the files -----------------------------------------------------------------------------------


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        (folder / "file").write_text(str(len(made)), encoding="utf-8")

    target = tmp_path / "deep" / "target"
    for stamp in ("a", "a", "b"):
        made_once(target, stamp, make)
    assert len(made) == 2
    assert (target / "file").read_text(encoding="utf-8") == "2"


def test_a_folder_that_was_not_finished_is_made_anew(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def fail(folder: Path) -> None:
        folder.mkdir()
        raise NotMade("disk full")

    with pytest.raises(NotMade, match="disk full"):
        made_once(target, "a", fail)
    assert not target.exists()
    assert made_once(target, "a", Path.mkdir).is_dir()


def files(tmp_path: Path, reason: str | None = None) -> Files:
    """Files of a tiny checkpoint, exported by this Python."""
    here = Installed(folder=Path(sys.prefix), stamp="", reason=reason)
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint")
    environments = dict.fromkeys(ENVIRONMENTS, here)
    return Files(WORKLOADS["shapes"], tmp_path / "home", environments, {"checkpoint": checkpoint})


def test_an_exporter_without_its_environment_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NotMade, match=r"onnx needs optimum-onnx: not installed"):
        files(tmp_path, "not installed").folder("onnx")


def test_an_exporter_that_fails_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = models.Exporter("diffusers", ("no_such_module_anywhere", "{output}"))
    monkeypatch.setattr(models, "EXPORTERS", {**EXPORTERS, "onnx": broken})
    with pytest.raises(NotMade, match=r"no_such_module_anywhere ended with 1: .*No module named"):
        files(tmp_path).folder("onnx")


# --- single contenders ---------------------------------------------------------------------------


def test_compiling_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.contenders.with_diffusers import require_compiler

    monkeypatch.setenv("CXX", "no-such-compiler")
    message = r"torch.compile needs a C\+\+ compiler: install no-such-compiler, or set CXX"
    with pytest.raises(RuntimeError, match=message):
        require_compiler()
    monkeypatch.setenv("CXX", sys.executable)
    require_compiler()


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
def test_stable_diffusion_cpp_gets_the_noise_levels_of_all_others(steps: int, betas: str) -> None:
    config = {**SCHEDULERS["ddim"], "beta_schedule": betas, **SCHEDULER}
    schedule = ed.schedule_from_config(config, steps=steps)
    levels = [row.level.sigma / row.level.alpha for row in schedule.rows]
    np.testing.assert_allclose(trailing_sigmas(config, steps)[:-1], levels, rtol=1e-5)
    assert trailing_sigmas(config, steps)[-1] == 0
