from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks.flops import count
from benchmarks.operator_profile import (
    Options,
    by_operator,
    main,
    operator_table,
    profile,
    read_events,
)
from benchmarks.reports import read_report
from edgediffusion.bundle import Bundle
from edgediffusion.errors import EngineError, RequestError

app = Typer()
app.command()(main)


def event(index: int, operator: str, us: int, inputs: list[Any], output: list[int]) -> Any:
    args = {
        "node_index": str(index),
        "op_name": operator,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    return {"cat": "Node", "name": f"node{index}_kernel_time", "dur": us, "args": args}


def run(us: int) -> Any:
    return {"cat": "Session", "name": "model_run", "dur": us}


def toy(conv: int, product: int) -> list[Any]:
    return [
        event(0, "Conv", conv, [[1, 4, 8, 8], [6, 4, 3, 3], [6]], [1, 6, 8, 8]),
        event(1, "MatMul", product, [[5, 8]], [5, 3]),  # the packed weights are not shown
        event(2, "Softmax", 10, [[5, 3]], [5, 3]),
        run(conv + product + 20),
    ]


def test_events_become_nodes_with_samples_and_operations() -> None:
    runs, nodes = read_events([{"cat": "Session", "name": "model_loading", "dur": 9},
                               *toy(100, 50), *toy(110, 60)])  # fmt: skip
    assert runs == [170, 190]
    assert [node.operator for node in nodes] == ["Conv", "MatMul", "Softmax"]
    assert [node.samples_us for node in nodes] == [(100, 110), (50, 60), (10, 10)]
    assert [node.flops for node in nodes] == [2 * 6 * 64 * 4 * 9, 2 * 5 * 3 * 8, 0]
    assert nodes[0].shapes == "1x4x8x8 6x4x3x3 6 -> 1x6x8x8"


def test_operators_are_added_up_from_the_fastest_run_of_each_node() -> None:
    events = [*toy(100, 50), *toy(200, 30), *toy(300, 70)]
    second = [event(3, "Conv", us, [[1, 4, 8, 8], [6, 4, 1, 1]], [1, 6, 8, 8]) for us in (9, 8, 7)]
    runs, nodes = read_events([*events, *second])
    found = by_operator({"runs_us": runs, "nodes": [asdict(node) for node in nodes]})
    assert list(found) == ["Conv", "MatMul", "Softmax", "(between nodes)"]
    assert [(number, part.us) for number, part in found.values()] == [
        (2, 107), (1, 30), (1, 10), (0, 1)
    ]  # fmt: skip
    assert found["Conv"][1].share == pytest.approx(107 / 148)
    assert sum(part.share for _, part in found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "profile has no runs"),
        ([*toy(1, 1), run(5)], r"nodes that did not run every time: \['node0_kernel_time'"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(events: list[Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        read_events(events)


@pytest.fixture(scope="module")
def profiled(demo: Path) -> dict[str, Any]:
    return profile(Bundle.open(demo), Options(component="vae_decoder", rounds=2, threads=1))


def test_a_true_profile_holds_the_operations_of_the_graph(
    demo: Path, profiled: dict[str, Any]
) -> None:
    assert len(profiled["runs_us"]) == 2
    assert {len(node["samples_us"]) for node in profiled["nodes"]} == {2}
    found = sum(node["flops"] for node in profiled["nodes"])
    counted = count(demo / "vae_decoder" / "128x128.b1.onnx").matrix_flops
    assert found == pytest.approx(counted, rel=0.05)  # ONNX Runtime pads some channels
    for samples in zip(*(node["samples_us"] for node in profiled["nodes"]), strict=True):
        assert sum(samples) <= max(profiled["runs_us"])


def test_the_table_shows_operators_and_the_slowest_nodes(profiled: dict[str, Any]) -> None:
    table = operator_table(profiled, longest=3)
    assert "`vae_decoder/128x128.b1.onnx`" in table
    assert "| Conv | " in table
    assert "(between nodes)" in table
    assert len(table.split("\n\n")[2].splitlines()) == 2 + 3


def test_openvino_states_that_its_counters_are_absent(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.operator_profile.resolve_device", lambda device: device)
    report = profile(Bundle.open(demo), Options(device="openvino"))
    assert report["nodes"] == []
    assert "gives no access to OpenVINO's counters" in report["absent"]
    assert "No profile of `unet/128x128.b1.onnx`: " in operator_table(report)


def test_a_device_without_a_profile_is_refused(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.operator_profile.resolve_device", lambda device: device)
    with pytest.raises(RequestError, match="device 'cuda' cannot be profiled, expected cpu"):
        profile(Bundle.open(demo), Options(device="cuda"))


def test_no_rounds_are_refused() -> None:
    with pytest.raises(RequestError, match="rounds must be at least 1, got 0"):
        Options(rounds=0)


def test_the_command_writes_a_report(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "operators.json"
    arguments = [str(demo), "--component", "text_encoder", "--rounds", "1", "--json", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert read_report(file, ["edgediffusion-operators/1"])["graph"] == "text_encoder/b1.onnx"
    assert "MatMul" in result.output
