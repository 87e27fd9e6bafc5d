from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

import edgediffusion as ed
from benchmarks import peers, workloads
from benchmarks.contenders import catalogue
from benchmarks.contenders.models import Files
from benchmarks.contenders.protocol import Job
from benchmarks.contenders.report import SCHEMA, Run
from benchmarks.contenders.rounds import Entry, Plan
from benchmarks.contenders.with_edgediffusion import EdgeDiffusion
from benchmarks.environments import Installed
from benchmarks.workloads import WORKLOADS, Workload
from edgediffusion.anchor import Anchor
from edgediffusion.manifest import GATES

ROOT = Path(__file__).resolve().parents[2]
FAKE = (sys.executable, "-m", "tests.benchmarks.fake_worker")
STAGES = ("unet_b1", "unet_b2", "end_to_end_1")
STAGES_OF_ALL = (*workloads.STAGES, "end_to_end_1", "end_to_end_4")
WORKLOAD = Workload(architecture="shapes", size=(16, 24), counts={}, steps=(1,), batch=2)


def entry(folder: Path, name: str = "fake", **options: Any) -> Entry:
    """A fake contender."""
    options = {"name": name, "log": str(folder / "log"), **options}
    sample, states = ed.randn((4, 4, 2, 3), seed=1), ed.randn((4, 7, 8), seed=2)
    np.savez(folder / "unet_inputs.npz", sample=sample, timestep=500, states=states)
    job = Job(
        model=str(folder),
        scheduler="",
        latents=str(folder / "latents.npy"),
        prompt="a",
        negative="",
        guidance=3.0,
        seed=0,
        size=WORKLOAD.size,
        batch=WORKLOAD.batch,
        unet_inputs=str(folder / "unet_inputs.npz"),
        options=options,
    )
    np.save(folder / "latents.npy", ed.randn(WORKLOAD.latent_shape, seed=0))
    return Entry(command=FAKE, job=job, environment_mib=1.0, packages=2, disk_mib=3.0)


def plan(**own: Any) -> Plan:
    return Plan(**{"rounds": 2, "stages": STAGES, "warmup": 0, "resident": True, **own})


def measure(
    folder: Path, entries: Mapping[str, Entry], how: Plan | None = None, **own: Any
) -> dict[str, Any]:
    """Run fake contenders through the real harness."""
    own = {"anchor": Anchor(size=16), "reference": "fake", **own}
    return Run("fake", WORKLOAD, entries, how or plan(), folder, **own).measure()


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text(encoding="utf-8").split("\n")[:-1]


def test_a_contender_is_measured_in_every_round(tmp_path: Path) -> None:
    report = measure(tmp_path, {"fake": entry(tmp_path, delay_ms=20, calls=2)})
    row = report["contenders"]["fake"]
    assert report["schema"] == SCHEMA == "edgediffusion-peers/1"
    assert (row["status"], row["reason"], report["complete"]) == ("ok", None, True)
    assert row["versions"] == {"fake": "1.0"}
    assert [len(row["samples_ms"][stage]) for stage in STAGES] == [2, 2, 2]
    assert all(ms >= 10 for ms in row["samples_ms"]["unet_b1"])  # 20 ms over two calls
    assert len(row["load_ms"]) == len(row["cold_start_ms"]) == 2
    assert row["cold_start_ms"][0] > row["load_ms"][0] > 0
    assert row["peak_memory_mib"] is None or row["peak_memory_mib"] > 1
    assert (row["environment_mib"], row["packages"], row["disk_mib"]) == (1.0, 2, 3.0)
    assert row["sameness"]["flags"] == []
    assert len(report["anchor"]["samples_ms"]) == 2


def test_contenders_take_turns_and_another_one_begins_in_each_round(tmp_path: Path) -> None:
    entries = {name: entry(tmp_path, name) for name in ("a", "b", "c")}
    measure(tmp_path, entries, plan(rounds=3, counts={"cold_start": 0}, stages=("unet_b1",)))
    runs = [line.split()[0] for line in log_of(tmp_path) if line.endswith(" run")]
    assert runs == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_stage_is_measured_as_often_as_it_is_counted(tmp_path: Path) -> None:
    counts = {"unet_b1": 1, "cold_start": 2}
    report = measure(tmp_path, {"fake": entry(tmp_path)}, plan(rounds=3, counts=counts))
    row = report["contenders"]["fake"]
    assert [ms is None for ms in row["samples_ms"]["unet_b1"]] == [False, True, True]
    assert [ms is None for ms in row["samples_ms"]["unet_b2"]] == [False, False, False]
    assert [ms is None for ms in row["cold_start_ms"]] == [False, False, True]


@pytest.mark.parametrize(("resident", "starts"), [(True, 1), (False, 3)])
def test_processes_stay_or_start_anew(tmp_path: Path, resident: bool, starts: int) -> None:
    how = plan(rounds=3, resident=resident, counts={"cold_start": 1})
    measure(tmp_path, {"fake": entry(tmp_path)}, how)
    assert log_of(tmp_path).count("fake hello") == starts


def test_every_start_is_warmed_up(tmp_path: Path) -> None:
    how = plan(warmup=2, counts={"cold_start": 1}, stages=("unet_b1", "end_to_end_1"))
    measure(tmp_path, {"fake": entry(tmp_path)}, how)
    assert log_of(tmp_path).count("fake run") == 2 + 2  # two of the one process are not kept
    assert log_of(tmp_path).count("fake picture") == 1 + 2  # the first one is the warm-up


FAULTS = {
    "crash": r"ended with exit code 3 while asked for '{op}': FakeError: out of luck",
    "<html>": r"printed rubbish instead of an answer: '<html>'",
    "[1]": r"printed rubbish instead of an answer: '\[1\]'",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["load", "run"])
def test_a_broken_contender_is_one_row(tmp_path: Path, fault: str, at: str) -> None:
    entries = {"bad": entry(tmp_path, "bad", at=at, fault=fault), "fake": entry(tmp_path)}
    report = measure(tmp_path, entries, plan(rounds=1, stages=("unet_b1",)))
    bad, good = report["contenders"]["bad"], report["contenders"]["fake"]
    assert bad["status"] == ("failed" if at == "load" else "partial")
    assert re.search(FAULTS[fault].format(op=at), bad["reason"])
    assert "unet_b1" not in bad["samples_ms"]
    assert (good["status"], len(good["samples_ms"]["unet_b1"])) == ("ok", 1)


def test_a_contender_that_hangs_is_given_up(tmp_path: Path) -> None:
    entries = {"bad": entry(tmp_path, "bad", at="run", fault="hang"), "fake": entry(tmp_path)}
    report = measure(tmp_path, entries, plan(limit_s=10.0, stages=("unet_b1",)))
    row = report["contenders"]["bad"]
    assert re.fullmatch(r"hung: no answer to '\w+' within 10 s", row["reason"])
    assert report["complete"]


@pytest.mark.parametrize("answer", ['{"x": 1}', '{"ms": "soon"}', '{"ms": -1}', '{"ms": NaN}'])
def test_an_answer_without_a_time_is_rubbish(tmp_path: Path, answer: str) -> None:
    report = measure(tmp_path, {"fake": entry(tmp_path, at="run", fault=answer)})
    reason = report["contenders"]["fake"]["reason"]
    assert re.search(r"printed rubbish: milliseconds wanted, got \{'(x|ms)'", reason)


def test_a_greeting_of_another_kind_is_rubbish(tmp_path: Path) -> None:
    report = measure(tmp_path, {"fake": entry(tmp_path, at="hello", fault='{"hi": 1}')})
    row = report["contenders"]["fake"]
    assert (row["status"], row["reason"]) == (
        "failed",
        "printed rubbish for a greeting: {'hi': 1}",
    )


def test_a_program_that_is_not_there_is_a_row(tmp_path: Path) -> None:
    missing = Entry(command=(str(tmp_path / "python"),), job=entry(tmp_path).job)
    row = measure(tmp_path, {"fake": missing})["contenders"]["fake"]
    assert row["status"] == "failed"
    assert re.search("could not be started: .*python", row["reason"])


def test_one_refused_stage_leaves_the_others(tmp_path: Path) -> None:
    report = measure(tmp_path, {"fake": entry(tmp_path, at="run", fault="error")})
    row = report["contenders"]["fake"]
    refused = "RuntimeError: cannot do that"
    assert row["absent"] == {"unet_b1": refused, "unet_b2": refused}
    assert (row["status"], row["reason"]) == ("partial", None)
    assert len(row["samples_ms"]["end_to_end_1"]) == 2


def test_a_contender_that_makes_no_picture_has_failed(tmp_path: Path) -> None:
    row = measure(tmp_path, {"fake": entry(tmp_path, at="picture", fault="error")})
    row = row["contenders"]["fake"]
    assert (row["status"], row["reason"]) == (
        "failed",
        "made no picture: RuntimeError: cannot do that",
    )
    assert row["sameness"] is None


def test_the_picture_of_an_earlier_run_is_not_compared(tmp_path: Path) -> None:
    measure(tmp_path, {"fake": entry(tmp_path)}, plan(rounds=1, stages=()))
    assert (tmp_path / "fake.npz").exists()
    row = measure(tmp_path, {"fake": entry(tmp_path, at="load", fault="error")})
    assert row["contenders"]["fake"]["sameness"] is None


def test_a_stage_that_is_not_shown_is_absent_not_zero(tmp_path: Path) -> None:
    row = measure(tmp_path, {"fake": entry(tmp_path, absent=["unet_b1"])})["contenders"]["fake"]
    assert (row["absent"], row["status"]) == ({"unet_b1": "hidden"}, "ok")
    assert "unet_b1" not in row["samples_ms"]


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ("steps", "made 3 steps, not 4"),
        ("size", "made pictures of 32x24, not 16x24"),
        ("batch", "made 1 pictures, not 2"),
        ("flat", "the picture is flat"),
        ("latents", "latents differ from the reference by 2; fp32 allows"),
        ("unet", "the UNet differs from the reference's by 1; fp32 allows 0.0001"),
    ],
)
def test_other_work_is_flagged(tmp_path: Path, wrong: str, flag: str) -> None:
    entries = {"fake": entry(tmp_path), "other": entry(tmp_path, "other", wrong=wrong)}
    report = measure(tmp_path, entries, plan(rounds=1))
    assert report["contenders"]["fake"]["sameness"]["flags"] == []
    assert flag in "; ".join(report["contenders"]["other"]["sameness"]["flags"])


def test_one_prediction_is_compared_for_the_whole_run(tmp_path: Path) -> None:
    report = measure(tmp_path, {"fake": entry(tmp_path), "b": entry(tmp_path, "b")})
    assert report["contenders"]["b"]["sameness"]["unet_l2"] == 0
    assert log_of(tmp_path).count("b unet") == 1


def test_a_unet_that_is_hidden_is_no_fault(tmp_path: Path) -> None:
    entries = {"fake": entry(tmp_path), "other": entry(tmp_path, "other", wrong="hidden")}
    row = measure(tmp_path, entries, plan(rounds=2))["contenders"]["other"]
    assert (row["status"], row["sameness"]["unet_l2"]) == ("ok", None)
    reason = "ValueError: the program does not let its UNet be called"
    assert row["absent"] == {"prediction to compare": reason}


def test_the_arithmetic_is_what_the_loaded_graphs_compute_in(tmp_path: Path) -> None:
    row = measure(tmp_path, {"fake": entry(tmp_path, precision="bf16")})["contenders"]["fake"]
    assert row["precision"] == "bf16"
    row = measure(tmp_path, {"fake": entry(tmp_path, precision="fp7")})["contenders"]["fake"]
    assert row["reason"].startswith("printed rubbish: an arithmetic wanted, got {'ms': ")


def test_results_are_on_disk_after_each_round(tmp_path: Path) -> None:
    json = tmp_path / "out.json"
    seen = []

    def look(text: str) -> None:
        if json.exists():
            report = msgspec.json.decode(json.read_bytes())
            seen.append((report["rounds"], report["complete"]))

    measure(tmp_path, {"fake": entry(tmp_path)}, json=json, say=look)
    assert (1, False) in seen
    final = msgspec.json.decode(json.read_bytes())
    assert (final["rounds"], final["complete"]) == (2, True)


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if text == "round 2 of 3: fake: unet_b2":
            raise KeyboardInterrupt

    json = tmp_path / "out.json"
    measure(tmp_path, {"fake": entry(tmp_path)}, plan(rounds=3), json=json, say=interrupt)
    report = msgspec.json.decode(json.read_bytes())
    samples = report["contenders"]["fake"]["samples_ms"]
    assert (report["complete"], report["rounds"]) == (False, 2)
    assert [ms is None for ms in samples["unet_b1"]] == [False, False]
    assert [ms is None for ms in samples["unet_b2"]] == [False, True]


def test_the_anchor_says_what_it_is() -> None:
    anchor = Anchor(size=16)
    assert anchor.identity["size"] == 16
    assert anchor.identity["name"] == "sgemm"
    assert anchor.identity["numpy"] == np.__version__
    assert anchor.identity["threads"] >= 1
    assert anchor.sample() > 0


# --- the command ---------------------------------------------------------------------------------


def invoke(*arguments: str) -> tuple[int, str]:
    app = Typer()
    app.command()(peers.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, " ".join(re.sub(r"[│\s]+", " ", result.output).split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shape"], "unknown workload 'shape': did you mean shapes?"),
        (["shapes", "--contender", "diffuser-fp32"], "unknown contender 'diffuser-fp32': did you"),
        (["shapes", "--count", "unet_b1"], "--count: got 'unet_b1', expected NAME=VALUE"),
        (
            ["shapes", "--count", "unet_b3=1"],
            "--count: unknown name 'unet_b3': did you mean",
        ),
        (["shapes", "--count", "unet_b1=x"], "--count: got unet_b1=x, expected a whole number of"),
        (["shapes", "--given", "bundl=."], "--given: unknown name 'bundl': did you mean bundle?"),
        (["shapes", "--given", "bundle=/no/such"], "--given: bundle: there is no folder /no/such"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = invoke(*arguments, "--home", str(tmp_path))
    assert code == 2
    assert message in output


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_checkpoint_that_is_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.parent.mkdir()
    if content is not None:
        file.write_bytes(content)
    code, output = invoke("sd15-512", "--home", str(tmp_path), "--given", f"checkpoint={tmp_path}")
    assert code == 2
    assert "cannot be read, expected a folder of diffusers" in output


def test_without_environments_every_row_says_how_to_make_one(tmp_path: Path) -> None:
    json = tmp_path / "results" / "out.json"
    code, output = invoke("shapes", "--home", str(tmp_path), "--json", str(json), "--rounds", "1")
    report = msgspec.json.decode(json.read_bytes())
    assert code == 1
    assert "`diffusers-fp32` is unavailable: not installed" in output
    assert set(report["contenders"]) == set(catalogue.CONTENDERS)
    for row in report["contenders"].values():
        assert row["status"] == "unavailable"
        assert "not installed: python benchmarks/environments.py make" in row["reason"]


def environments_here(tmp_path: Path) -> dict[str, Installed]:
    """This test's own environment in the place of every isolated one."""
    here = Installed(folder=Path(sys.prefix), stamp="", mib=1.0, packages=1)
    return dict.fromkeys(peers.ENVIRONMENTS, here)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> dict[str, Any]:
    """Our worker and diffusers' on the demo and the checkpoint that it was made of, for real."""
    folder = tmp_path_factory.mktemp("peers")
    work = WORKLOADS["shapes"]
    files = Files(work, folder / "home", environments_here(folder), {"bundle": demo})
    chosen = catalogue.find_contenders(["edgediffusion-cpu", "diffusers-fp32", "diffusers-bf16"])
    entries = peers.prepare(work, chosen, files, folder)
    how = plan(stages=STAGES_OF_ALL, limit_s=600.0, counts={"cold_start": 1})
    return Run("shapes", work, entries, how, folder, anchor=Anchor(size=16)).measure()


def test_our_worker_and_diffusers_do_the_same_work(real: dict[str, Any]) -> None:
    for name, row in real["contenders"].items():
        assert (row["status"], row["reason"]) == ("ok", None), name
        assert set(row["samples_ms"]) == set(STAGES_OF_ALL)
        assert all(ms > 0 for samples in row["samples_ms"].values() for ms in samples)
        assert row["sameness"]["picture_std"] > 10
    ours = real["contenders"]["edgediffusion-cpu"]
    assert ours["sameness"]["flags"] == []
    assert ours["sameness"]["latents_l2"] < 1e-4
    assert ours["precision"] == "fp32"
    assert "torch" not in ours["versions"]
    assert ours["sameness"]["unet_l2"] < 1e-5


def test_bf16_is_the_same_network_and_the_same_work(real: dict[str, Any]) -> None:
    row = real["contenders"]["diffusers-bf16"]
    assert row["precision"] == "bf16"
    assert 1e-4 < row["sameness"]["unet_l2"] < GATES["bf16"]
    assert 1e-2 < row["sameness"]["latents_l2"] < 2e-1  # four steps with guidance add up
    assert row["sameness"]["flags"] == []


def test_a_preset_takes_the_place_of_twenty_steps_and_says_so() -> None:
    fast = catalogue.CONTENDERS["edgediffusion-openvino-fast"]
    assert fast.note == "in the place of 20 steps it makes the fewer, cheaper ones of `fast`"
    worker = EdgeDiffusion()
    worker.job = Job(
        model="m",
        scheduler="s",
        latents="l",
        prompt="a dog",
        negative="",
        guidance=3.0,
        seed=7,
        size=(64, 64),
        batch=1,
        options=fast.options,
    )
    few, many = worker.request(4), worker.request(20)
    assert (few.preset, few.steps, few.sampler, few.schedule) == (None, 4, "euler", "trailing")
    assert (many.preset, many.steps, many.sampler, many.schedule) == ("fast", None, None, None)
    assert (many.prompt, many.guidance, many.seed, many.size) == ("a dog", 3.0, 7, (64, 64))


def test_the_machine_and_the_workload_are_in_the_report(real: dict[str, Any]) -> None:
    assert real["machine"]["cores"] >= 1
    assert real["workload"]["prompt"] == WORKLOADS["shapes"].prompt
    assert real["workload"]["scheduler"]["timestep_spacing"] == "trailing"
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", real["commit"])


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process")
def test_a_real_ctrl_c_ends_the_workers_too(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    json = tmp_path / "out.json"
    script.write_text(
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from tests.benchmarks.test_peers import entry, measure, plan\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "folder = Path(sys.argv[1])\n"
        "slow = entry(folder, delay_ms=100)\n"
        "measure(folder, {'fake': slow}, plan(rounds=10_000), json=folder / 'out.json')\n",
        encoding="utf-8",
    )
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    threading.Thread(target=interrupt_once_there, args=(child, json), daemon=True).start()
    assert child.wait() == 0
    report = msgspec.json.decode(json.read_bytes())
    assert report["complete"] is False
    assert report["contenders"]["fake"]["samples_ms"]["unet_b1"][0] >= 100


def interrupt_once_there(child: subprocess.Popen[bytes], json: Path) -> None:
    while not json.exists():
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
