import json
import sys
from pathlib import Path

import pytest

from benchmarks.reports import ROOT, head, markdown, read_report, write_report
from edgediffusion.errors import OutputError, RequestError


def test_a_report_says_how_to_run_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "benchmarks" / "roofline.py")
    monkeypatch.setattr(sys, "argv", [script, "my bundle", "--rounds", "3"])
    begun = head("toy/1")
    assert begun["command"] == "python benchmarks/roofline.py 'my bundle' --rounds 3"
    assert begun["schema"] == "toy/1"
    assert begun["machine"]["cores"] >= 1
    assert begun["started"].endswith("Z")


def test_a_checkout_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert head("toy/1")["commit"] is None


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = {"schema": "toy/1", "samples_ms": [1.5, None]}
    write_report(tmp_path / "new" / "toy.json", report)
    assert read_report(tmp_path / "new" / "toy.json", ["toy/1"]) == report


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"toy.json could not be written: "):
        write_report(tmp_path / "file" / "toy.json", {})


def test_another_schema_names_those_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"schema": "toys/1"}))
    with pytest.raises(RequestError, match=r"has schema 'toys/1', did you mean toy/1\?"):
        read_report(path, ["toy/1", "other"])


def test_markdown_has_numbers_to_the_right() -> None:
    made = markdown(["name", "ms"], [["a", "1"]])
    assert made == "| name | ms |\n| --- | ---: |\n| a | 1 |"
