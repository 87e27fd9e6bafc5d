from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import edgediffusion as ed
from edgediffusion.bench import BenchOptions, bench
from edgediffusion.cli import _embeddings, main
from edgediffusion.engine import BACKENDS
from edgediffusion.engine_cache import EngineCache, engine_cache
from edgediffusion.hashing import SELF_TESTS, remember

FAST = ["--steps", "2", "--seed", "7"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user's shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "edgediffusion.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_generate_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red circle", "-o", str(tmp_path / "a.png"), *FAST]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (128, 128)
    assert "seed 7, 2 steps" in capsys.readouterr().out


def test_a_batch_writes_numbered_pictures(tmp_path: Path) -> None:
    assert main(["generate", "a", "-o", str(tmp_path / "a.png"), "--batch", "2", *FAST]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-0.png", "a-1.png"]


def test_what_did_not_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "red " * 100, "-o", str(tmp_path / "a.png"), *FAST]) == 0
    assert "the end of the prompt did not fit and was left out" in capsys.readouterr().err


def test_auto_says_what_it_chose_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ["generate", "a", "-o", str(tmp_path / "a.png"), *FAST]
    assert main(generate) == 0
    said = capsys.readouterr().err
    assert "note: device " in said
    assert "3 graphs proven, worst L2 " in said
    assert main([*generate, "--device", "cpu"]) == 0
    assert "note: device" not in capsys.readouterr().err
    assert main(["embed", "a"]) == 0
    assert "1 graph proven" in capsys.readouterr().err


def test_quiet_leaves_only_errors_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["-o", str(tmp_path / "a.png"), *FAST]
    assert main(["--quiet", "generate", "red " * 100, *output]) == 0
    assert capsys.readouterr().err == ""
    assert main(["-q", "generate", "a", *output, "--steps", "0"]) == 1
    assert "error: steps must be" in capsys.readouterr().err
    assert main(["generate", "red " * 100, *output]) == 0
    assert "note: the end of the prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be a whole number from 1 to 1000, got 0"),
        (["--guidance", "nan"], "guidance must be a finite number, got nan"),
        (["--sampler", "eular"], "unknown sampler 'eular': did you mean euler"),
        (["--schedule", "karas"], "karras"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--bundle", "shaeps"], "no bundle 'shaeps': neither a folder nor a known name (did you"),
        (["--size", "64x64"], "has no graphs for 64x64; it has 128x128"),
        (["--prompt-syntax", "a1111"], "unknown prompt_syntax 'a1111': known: plain, weighted"),
        (["--long-prompts", "cut"], "unknown long_prompts 'cut': known: chunks, truncate"),
        (["--clip-skip", "-1"], "clip_skip must be a whole number of at least 0, got -1"),
        (["--negative-clip-skip", "-1"], "negative_clip_skip must be a whole number of at least 0"),
        (["--size", "large"], "size 'large' is not HEIGHTxWIDTH in pixels, like 512x768"),
        (["--decoder", "small"], "unknown decoder 'small': known: full, tiny"),
        (["--preset", "fats"], "unknown preset 'fats': did you mean fast?"),
        (["--guidance-interval", "3"], "guidance interval '3' is not LOW:HIGH in noise levels"),
        (["--guidance-interval", "5:1"], "guidance_interval must be two noise levels"),
        (["--guidance-every", "0"], "guidance_every must be a whole number from 1 to 1000"),
        (["--deepcache", "0"], "deepcache_interval must be a whole number from 1 to 1000"),
        (["--seed", "-3"], "a seed is a whole number from 0"),
        (["--threads", "-3"], "threads must be at least 0"),
        (["-o", "missing/a.png"], "the folder missing does not exist"),
        (["-o", "a.jpg"], "a.jpg must end in .png"),
        (["-o", "folder.png"], "folder.png cannot be written: it is a folder"),
    ],
)
def test_bad_input_is_one_line_and_no_traceback(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    done = run("generate", "a red circle", *FAST[2:], *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--stepps", "3"], "--steps"),
        (["generat", "x"], "generat"),
        (["generate", "x", "--steps", "many"], "Invalid value for '--steps'"),
    ],
)
def test_a_wrong_word_is_a_usage_error(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_damage_is_one_line_and_no_traceback(copied: Path, tmp_path: Path) -> None:
    os.truncate(copied / "unet" / "weights.safetensors", 100)
    done = run("generate", "x", "--bundle", str(copied), cwd=tmp_path)
    assert done.returncode == 1
    assert "has 100 bytes, the manifest says" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_of_undecodable_bytes_is_refused(tmp_path: Path) -> None:
    done = run("generate", os.fsdecode(b"\xff\xfe"), cwd=tmp_path)
    assert done.returncode == 1
    assert "is not valid Unicode text" in done.stderr


def test_verify_and_its_exit_codes(
    demo: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(demo)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert main(["verify", str(copied), "--device", "cuda"]) == 1
        told = capsys.readouterr()
        assert told.out.count("needs onnxruntime-gpu") == told.out.count("FAIL") == 1
        assert "device cuda" in told.out
        assert "1 check(s) failed" in told.err
    golden = copied / "unet" / "golden.safetensors"
    golden.write_bytes(golden.read_bytes()[:-4])
    assert main(["verify", str(copied)]) == 1
    assert "golden.safetensors has" in capsys.readouterr().err


def test_info_shows_the_graphs_and_their_parity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for expected in ("Apache-2.0", "128x128", "unet/128x128.b2.onnx", "MiB"):
        assert expected in shown
    assert main(["info", "shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1


def test_devices_says_what_works_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "yes cpu" in shown
    for name in BACKENDS:  # each has its row; which of them work is the machine's affair
        assert any(line.split()[1:2] == [name] for line in shown.splitlines()), name


def test_cache_shows_what_is_kept_and_clear_empties_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path))
    monkeypatch.setenv("EDGEDIFFUSION_CACHE_LIMIT", "1 GiB")
    assert main(["cache"]) == 0
    assert "0 engine(s), 0.0 MiB of at most 1.0 GiB, in " in capsys.readouterr().out
    for content in ("a", "b"):
        facts = {"content": content, "device": "openvino"}
        with engine_cache().building(facts, f"shapes/unet/{content}.onnx") as folder:
            assert folder is not None
            (folder / "blob").write_bytes(bytes(1 << 20))
    lease = engine_cache().find({"content": "b", "device": "openvino"})
    assert lease is not None
    remember(SELF_TESTS, "a graph", "1e-6")
    assert (tmp_path / "self-tests.json").exists()
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "1.0 MiB  openvino  shapes/unet/a.onnx" in shown
    assert "2 engine(s), 2.0 MiB" in shown
    assert main(["cache", "clear"]) == 0
    said = capsys.readouterr()
    assert said.out == "removed 1.0 MiB\n"
    assert said.err == "note: shapes/unet/b.onnx stays: it is in use, or cannot be removed\n"
    assert not (tmp_path / "self-tests.json").exists()
    lease.release()
    assert main(["cache", "clear"]) == 0
    assert engine_cache().entries() == []


def test_a_cache_that_cannot_be_emptied_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: EngineCache) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(EngineCache, "clear", refuse)
    assert main(["cache", "clear"]) == 1
    assert "cannot be emptied: Permission denied" in capsys.readouterr().err


def test_embed_to_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a red circle", "a cross"]
    assert main(["embed", *texts]) == 0
    printed = np.array(json.loads(capsys.readouterr().out), np.float32)
    assert main(["embed", *texts, "-o", str(tmp_path / "e.npy")]) == 0
    assert main(["embed", *texts, "-o", str(tmp_path / "e.json"), "--kind", "hidden"]) == 0
    saved = np.load(tmp_path / "e.npy")
    assert saved.shape[0] == 2
    np.testing.assert_array_equal(saved, printed)
    assert np.array(json.loads((tmp_path / "e.json").read_text())).shape[:2] == (2, 77)


def test_embed_reads_weights_and_long_texts(tmp_path: Path) -> None:
    file = tmp_path / "e.npy"
    hidden = ["embed", "-o", str(file), "--kind", "hidden"]
    assert main([*hidden, "a (red:1.3) circle", "--prompt-syntax", "weighted"]) == 0
    with ed.Pipeline.open() as pipe:
        want = pipe.embed(["a (red:1.3) circle"], prompt_syntax="weighted").hidden
    np.testing.assert_array_equal(np.load(file), want)
    assert main([*hidden, "red " * 80, "--long-prompts", "chunks"]) == 0
    assert np.load(file).shape[1] == 154


def test_embeddings_are_files_with_or_without_a_name(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.safetensors"
    odd.touch()
    assert _embeddings(None) == ()
    assert _embeddings(["x.safetensors", "<x>=y.safetensors", str(odd)]) == (
        ed.TextualInversion("x.safetensors"),
        ed.TextualInversion("y.safetensors", "<x>"),
        ed.TextualInversion(str(odd)),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-syntax", "x"], "unknown prompt_syntax 'x'"),
        (["--long-prompts", "x"], "unknown long_prompts 'x'"),
        (["--clip-skip", "-2"], "clip_skip must be a whole number of at least 0, got -2"),
        (["-o", "e.txt"], r"e.txt must end in .npy or .json"),
        (["-o", "none/e.npy"], "cannot be written"),
        (["--kind", "all"], "unknown kind 'all'"),
    ],
)
def test_embed_refuses_what_it_cannot_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", "a", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_bench_writes_raw_samples_and_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    quick = ["--rounds", "2", "--warmup", "1", "--steps", "2", "--cold-starts", "1"]
    assert main(["bench", "shapes", "--json", str(report), *quick]) == 0
    data = json.loads(report.read_text())
    assert data["schema"] == "edgediffusion-bench/1"
    assert {"text_encoder", "unet_b1", "unet_b2", "sampler_step", "vae_decoder", "end_to_end"} <= (
        data["samples_ms"].keys()
    )
    assert all(
        len(s) == 2 for n, s in data["samples_ms"].items() if n not in ("cold_start", "import")
    )
    assert 0 < data["samples_ms"]["import"][0] < data["samples_ms"]["cold_start"][0]
    assert len(data["own_share"]) == 4
    assert len(data["anchor"]["samples_ms"]) == 2
    assert data["anchor"]["identity"]["name"] == "sgemm"
    assert data["complete"]
    assert all(0 < share < 1 for share in data["own_share"])
    assert data["machine"]["cores"] == os.cpu_count()
    assert "runtime's own share of a step" in capsys.readouterr().out


def test_a_bench_that_is_interrupted_keeps_its_whole_rounds(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("round 2 of 9: end_to_end"):
            raise KeyboardInterrupt

    options = BenchOptions(rounds=9, warmup=1, steps=1, cold_starts=1)
    report = bench(ed.Bundle.open("shapes"), options, interrupt)
    assert not report["complete"]
    assert {len(each) for each in report["samples_ms"].values()} == {1}
    assert len(report["own_share"]) == len(report["anchor"]["samples_ms"]) == 1
    assert "cold_start" not in report["samples_ms"]


@pytest.mark.parametrize("name", ["rounds", "steps"])
def test_bench_refuses_to_measure_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", f"--{name}", "0"]) == 1
    assert f"{name} must be at least 1, got 0" in capsys.readouterr().err


def test_bench_says_why_a_cold_start_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgediffusion.bench._COLD_START", "raise SystemExit('no way')")
    quick = ["--rounds", "1", "--warmup", "0", "--steps", "1", "--cold-starts", "1"]
    assert main(["bench", *quick]) == 1
    assert "a cold start failed: ['no way']" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("generate", "embed", "verify", "info", "bench", "devices", "cache"):
        assert name in shown
