from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.tables import plots, where_measured


def test_a_results_file_becomes_its_table(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"n": 3}), encoding="utf-8")
    assert where_measured("a.json", lambda report: f"n is {report['n']}", tmp_path) == "n is 3"


def test_what_is_not_measured_yet_is_said(tmp_path: Path) -> None:
    said = where_measured("a.json", lambda report: "never", tmp_path)
    assert said == "Not measured yet: `a.json` is missing."


def test_the_drawings_are_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    folder = tmp_path / "results" / "plots"
    assert plots(folder) == ""
    folder.mkdir(parents=True)
    for name in ("b.svg", "a.svg", "c.txt"):
        (folder / name).touch()
    assert plots(folder).splitlines()[::2] == [
        "`a.svg`",
        "![a.svg](../results/plots/a.svg)",
        "`b.svg`",
        "![b.svg](../results/plots/b.svg)",
    ]
