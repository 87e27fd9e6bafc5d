"""The two steps of docs/cuda.md in a fresh environment, with the real onnxruntime-gpu.

    python -m pytest -m gpu_wheel

It fetches 250 MB, so CI leaves it out. Without the CUDA libraries and on a machine without a GPU it
shows what a user sees there; with a GPU it asks for the same things and accepts that it works.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.gpu_wheel,
    pytest.mark.skipif(sys.platform == "darwin", reason="there is no onnxruntime-gpu for macOS"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with edgediffusion and both wheels, as the extra alone would leave it."""
    venv = tmp_path_factory.mktemp("cuda") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    program = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip(program, "install", str(ROOT))
    pip(program, "install", "--no-deps", "onnxruntime-gpu")
    return program


def pip(python: Path, *words: str) -> None:
    subprocess.run([python, "-m", "pip", "-q", *words], check=True)


def edgediffusion(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "edgediffusion.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_both_steps_leave_an_environment_that_works(python: Path, tmp_path: Path) -> None:
    """One test, because each step stands on the one before it."""
    shown = edgediffusion(python, "devices")
    assert "onnxruntime and onnxruntime-gpu share one import package" in shown.stdout

    pip(python, "uninstall", "-y", "onnxruntime", "onnxruntime-gpu")
    pip(python, "install", "--no-deps", "onnxruntime-gpu")  # docs/cuda.md adds the libraries
    shown = edgediffusion(python, "devices")
    assert shown.returncode == 0, shown.stderr
    assert "share one import package" not in shown.stdout
    assert "has no CUDA provider" not in shown.stdout
    assert "yes cpu" in shown.stdout

    picture = tmp_path / "circle.png"
    words = ("generate", "a red circle", "--steps", "2", "--seed", "1", "-o", str(picture))
    made = edgediffusion(python, *words, "--device", "cpu")
    assert made.returncode == 0, made.stderr
    assert picture.is_file()
    picture.unlink()
    asked = edgediffusion(python, *words, "--device", "cuda")
    if asked.returncode == 0:  # a GPU with its libraries
        assert "yes cuda" in shown.stdout
    else:
        assert "error: device 'cuda'" in asked.stderr
        assert "Traceback" not in asked.stderr
        assert not picture.exists(), "never a silent run on the CPU"
    chosen = edgediffusion(python, *words)
    assert chosen.returncode == 0, chosen.stderr
    assert picture.is_file()
