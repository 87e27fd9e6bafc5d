from __future__ import annotations

import json
from pathlib import Path

from benchmarks.tables import where_measured


def test_a_results_file_becomes_its_table(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"n": 3}), encoding="utf-8")
    assert where_measured("a.json", lambda report: f"n is {report['n']}", tmp_path) == "n is 3"


def test_what_is_not_measured_yet_is_said(tmp_path: Path) -> None:
    said = where_measured("a.json", lambda report: "never", tmp_path)
    assert said == "Not measured yet: `a.json` is missing."
