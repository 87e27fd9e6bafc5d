from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save_model

from benchmarks.plan_builds import SCHEMA, plans_table
from benchmarks.reports import ROOT


def run(*words: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "benchmarks" / "plan_builds.py")
    return subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A graph of one matrix product, its weights outside."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, [8, 64]) for n in "xy"]
    weights = helper.make_tensor("w", TensorProto.FLOAT16, [64, 64], b"\0" * 8192, raw=True)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    made = helper.make_graph([node], "g", values[:1], values[1:], [weights])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save_model(model, tmp_path / "g.onnx", save_as_external_data=True, location="w.bin")
    return tmp_path / "g.onnx"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="the extra tensorrt-rtx is not installed",
)
def test_each_plan_is_measured(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans.json"
    done = run(str(graph), "--kinds", "8.9", "--kinds", "8.6,12.0", "--json", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["schema"] == SCHEMA
    assert report["library"].startswith("TensorRT for RTX ")
    assert [build["kinds"] for build in report["builds"]] == [["8.9"], ["8.6", "12.0"]]
    assert all(build["plan_bytes"] > report["weights_bytes"] == 8192 for build in report["builds"])
    assert plans_table(report) in done.stdout
    failed = run(str(graph), "--kinds", "9.0")
    assert failed.returncode == 2
    assert "builds nothing for compute capability '9.0'" in failed.stderr


def test_the_table() -> None:
    build = {"kinds": ["8.6", "8.9"], "processor_seconds": 12.34, "plan_bytes": 3 << 30}
    report = {"weights_bytes": 2 << 30, "builds": [build | {"peak_memory_mib": 5120.0}]}
    assert plans_table(report).splitlines()[-1] == "| 8.6, 8.9 | 12 | 3.0 GiB | 1.500 | 5.0 GiB |"
