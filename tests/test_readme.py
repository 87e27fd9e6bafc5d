"""README.md and docs/ as a newcomer meets them: all commands run, from a wheel, in a fresh venv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.tables import PAGES, rendered
from tests.readme import ROOT, Block, blocks

README = ROOT / "README.md"
PAGES_IN_DOCS = sorted((ROOT / "docs").glob("*.md"))
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"


@dataclass(frozen=True)
class Newcomer:
    """A fresh virtual environment, and a folder that looks like the repository."""

    venv: Path
    folder: Path
    wheel: Path

    def run(self, script: str) -> str:
        """Run a shell script as the newcomer would, but for the wheel in place of the source."""
        script = re.sub(r'pip install "?\.(\[\w+\])?"?', self._install, script)
        path = f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "VIRTUAL_ENV": str(self.venv), "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def _install(self, match: re.Match[str]) -> str:
        extra = match[1] or ""
        return f"pip install -q -c '{CONSTRAINTS}' '{self.wheel}{extra}'"


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    root = tmp_path_factory.mktemp("newcomer")
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", root / "dist", ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    folder = root / "repository"
    (folder / "docs" / "images").mkdir(parents=True)
    (folder / "models").symlink_to(ROOT / "models")
    (wheel,) = (root / "dist").glob("*.whl")
    return Newcomer(root / "venv", folder, wheel)


def _runnable() -> list[Block]:
    return [block for block in blocks(README) if block.name != "tests"]


def test_every_block_has_a_name() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks(README))
    assert all(block.name for block in blocks(README))


@pytest.mark.skipif(
    sys.platform == "win32", reason="the README's shell blocks are for a POSIX shell"
)
def test_the_readmes_commands_run_in_order(newcomer: Newcomer) -> None:
    """One test, because each block stands on those before it."""
    for block in _runnable():
        _run(newcomer, block)
        if block.name == "quickstart":
            packages = newcomer.run("python -m pip list --format=freeze").splitlines()
            names = {line.partition("==")[0].lower() for line in packages}
            assert not names & {"torch", "diffusers", "transformers", "onnx"}
    for page in PAGES_IN_DOCS:  # the README's export has installed what these need
        program = ""
        for block in blocks(page):
            program += block.text if block.language == "python" else ""
            _run(newcomer, replace(block, text=program) if block.language == "python" else block)
    assert (newcomer.folder / "my-bundle" / "manifest.json").is_file()
    assert np.load(newcomer.folder / "embeddings.npy").shape[0] == 2
    for name in ("circle", "triangle", "cross", "square"):
        made = newcomer.folder / "docs" / "images" / f"{name}.png"
        assert _like(made, ROOT / "docs" / "images" / f"{name}.png"), name


def _run(newcomer: Newcomer, block: Block) -> None:
    if block.language == "python":
        (newcomer.folder / "program.py").write_text(block.text, encoding="utf-8")
        newcomer.run("python program.py")
    else:
        newcomer.run(block.text)


@pytest.mark.parametrize("page", [README, *PAGES_IN_DOCS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def _like(made: Path, committed: Path) -> bool:
    """The same picture: equal on the machine that made it, within rounding on another one."""
    with Image.open(made) as one, Image.open(committed) as other:
        difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(np.mean(difference**2)) < 1.0


def test_every_figure_comes_from_a_results_file() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert rendered(text) == text, f"run: python benchmarks/tables.py ({page.name} is stale)"


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    assert "tests/readme.py --print tests" in (ROOT / ".ci" / "run").read_text()
