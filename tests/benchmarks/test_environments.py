from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import environments
from benchmarks.environments import (
    ENVIRONMENTS,
    Environment,
    app,
    find_environment,
    make_environment,
    python_of,
)


def wheel(folder: Path, name: str, code: str = "") -> str:
    """A wheel with one module."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Environment]:
    one, other = wheel(tmp_path, "one", "number = 41"), wheel(tmp_path, "other")
    offline = "--no-index"
    return {
        "good": Environment((offline, one, other), without=("other",)),
        "bad": Environment((offline, "no-such-package-anywhere")),
    }


def test_an_environment_holds_what_was_asked_for_and_no_more(
    tmp_path: Path, table: dict[str, Environment]
) -> None:
    said: list[str] = []
    made = make_environment("good", tmp_path, table, said.append)
    assert (made.reason, made.packages) == (None, 1)
    assert made.mib is not None
    assert any("Successfully installed" in line for line in said)
    python = [str(python_of(made.folder)), "-c"]
    found = subprocess.run([*python, "import one; print(one.number)"], capture_output=True)
    assert found.stdout.strip() == b"41"
    for absent in ("other", "numpy"):
        assert subprocess.run([*python, f"import {absent}"], capture_output=True).returncode == 1


def test_a_good_environment_is_left_alone(tmp_path: Path, table: dict[str, Environment]) -> None:
    made = make_environment("good", tmp_path, table)
    (made.folder / "mark").touch()
    assert make_environment("good", tmp_path, table) == made
    assert (made.folder / "mark").exists()


def test_other_requirements_make_it_anew(tmp_path: Path, table: dict[str, Environment]) -> None:
    made = make_environment("good", tmp_path, table)
    (made.folder / "mark").touch()
    changed = {"good": Environment(table["good"].requirements)}
    old = find_environment("good", tmp_path, changed)
    assert re.match(r"out of date: python benchmarks/environments.py make good", old.reason or "")
    assert make_environment("good", tmp_path, changed).packages == 2
    assert not (made.folder / "mark").exists()


def test_a_half_made_environment_is_made_anew(
    tmp_path: Path, table: dict[str, Environment]
) -> None:
    half = tmp_path / "environments" / "good" / "half"
    half.mkdir(parents=True)
    missing = find_environment("good", tmp_path, table)
    assert re.match(r"not installed: python benchmarks/environments", missing.reason or "")
    assert make_environment("good", tmp_path, table).reason is None
    assert not half.exists()


def test_what_cannot_be_installed_is_recorded_with_pips_words(
    tmp_path: Path, table: dict[str, Environment]
) -> None:
    made = make_environment("bad", tmp_path, table)
    assert re.match(r"pip ended with 1: .*no-such-package-anywhere", made.reason or "")
    assert find_environment("bad", tmp_path, table) == made


def test_the_repositorys_own_environment_follows_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ENVIRONMENTS["edgediffusion"].stamp, ENVIRONMENTS["diffusers"].stamp
    monkeypatch.setattr(environments, "source_digest", lambda: "changed")
    after = ENVIRONMENTS["edgediffusion"].stamp, ENVIRONMENTS["diffusers"].stamp
    assert (before[0] == after[0], before[1] == after[1]) == (False, True)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_compared_is_pinned(name: str) -> None:
    for requirement in ENVIRONMENTS[name].requirements:
        own = requirement.startswith((".", "-"))  # this repository, with CI's constraints
        assert own or re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==[\d.]+", requirement)


def test_the_command_goes_on_after_a_failure(
    tmp_path: Path, table: dict[str, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, wanted in table.items():
        monkeypatch.setitem(ENVIRONMENTS, name, wanted)  # type: ignore[misc]
    result = CliRunner().invoke(app, ["make", "bad", "good", "--home", str(tmp_path)])
    assert result.exit_code == 1
    assert "good: ready" in result.output
    assert "bad: pip ended with 1" in result.output
    shown = CliRunner().invoke(app, ["show", "good", "--home", str(tmp_path)])
    assert (shown.exit_code, "ready" in shown.output) == (0, True)


def test_an_unknown_environment_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["make", "diffuser", "--home", str(tmp_path)])
    assert result.exit_code == 2
    text = " ".join(re.sub(r"[│\s]+", " ", result.output).split())
    assert "unknown environment 'diffuser': did you mean diffusers" in text
