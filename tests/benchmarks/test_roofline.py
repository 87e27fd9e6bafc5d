from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from benchmarks import ceilings as ceilings_module
from benchmarks import roofline as module
from benchmarks.reports import read_report
from benchmarks.roofline import Options, best_ceiling, main, roofline, roofline_table, standing
from edgediffusion.bundle import Bundle
from edgediffusion.errors import RequestError

app = Typer()
app.command()(main)

ROUNDS = 8


def top(resource: str, arithmetic: str, work: float, ms: float) -> dict[str, Any]:
    return {
        "resource": resource,
        "arithmetic": arithmetic,
        "work": work,
        "samples_ms": [ms * (1 + 2 * (i % 2)) for i in range(ROUNDS)],
    }


def report(flops: float, moved: float, ms: float, arithmetic: str = "fp32") -> dict[str, Any]:
    """A machine of 100 GFLOP/s and 10 GB/s, that runs at a third in every other round."""
    graph = {
        "arithmetic": arithmetic,
        "batch": 1,
        "flops": {"conv": flops / 2, "matmul": flops / 2, "attention": 0, "other": 9e9},
        "weight_bytes": moved / 4,
        "activation_bytes": 3 * moved / 4,
        "unfused_bytes": 2 * moved,
        "samples_ms": [ms * (1 + 2 * (i % 2)) for i in range(ROUNDS)],
    }
    tops = {
        "slow product": top("matrix", "fp32", 1e9, 20),
        "product": top("matrix", "fp32", 1e9, 10),
        "int8 product": top("matrix", "int8", 1e9, 1),
        "copy": top("memory", "", 1e8, 10),
        "cache copy": top("cache", "", 1e8, 2),
    }
    return {"last_level_cache": 1e6, "ceilings": tops, "graphs": {"g.onnx": graph}}


def test_a_graph_of_many_operations_is_bound_by_them() -> None:
    found = standing(report(flops=1e9, moved=2e6, ms=20), "g.onnx")
    assert found is not None
    assert (found.bound, found.ceiling) == ("compute", ("product", "copy"))
    assert found.intensity == 500
    # A third of the speed in half of the rounds does not blur what is taken round by round.
    assert (found.share.low, found.share.median, found.share.high) == pytest.approx((0.5,) * 3)


def test_a_graph_of_many_bytes_is_bound_by_memory() -> None:
    found = standing(report(flops=1e8, moved=1e8, ms=40), "g.onnx")
    assert found is not None
    assert found.bound == "memory"
    assert found.share.median == pytest.approx(0.25)


def test_traffic_that_fits_into_the_cache_is_held_against_it() -> None:
    found = standing(report(flops=1e4, moved=1e6, ms=1), "g.onnx")
    assert found is not None
    assert found.ceiling[1] == "cache copy"
    assert found.share.median == pytest.approx(0.02)


def test_an_arithmetic_without_a_ceiling_is_not_judged() -> None:
    odd = report(flops=1e9, moved=2e6, ms=20, arithmetic="fp16")
    assert standing(odd, "g.onnx") is None
    assert "no fp16 ceiling here" in roofline_table(odd)


def test_the_best_ceiling_of_an_arithmetic_counts() -> None:
    assert best_ceiling(report(1, 1, 1), {"matrix"}, "fp32") == "product"
    assert best_ceiling(report(1, 1, 1), {"memory", "cache"}) == "cache copy"
    assert best_ceiling(report(1, 1, 1), {"matrix"}, "bf16") is None


def test_the_table_shows_graphs_and_ceilings() -> None:
    table = roofline_table(report(flops=1e9, moved=2e6, ms=20))
    assert "| `g.onnx` | 1 | 2 | 500 | 40.00 | 25 | compute | 50% (50% to 50%) |" in table
    assert "| copy | 5.0 GB/s |" in table


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_large_array_bytes", lambda: 1 << 20)
    real = module.ceilings
    monkeypatch.setattr(module, "ceilings", lambda threads: real(threads, side=64))


@pytest.mark.usefixtures("_small")
def test_the_command_writes_a_report(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "roofline.json"
    arguments = [str(demo), "--json", str(file), "--device", "cpu", "--rounds", "2"]
    result = CliRunner().invoke(app, [*arguments, "--component", "text_encoder"])
    assert result.exit_code == 0, result.output
    written = read_report(file, ["edgediffusion-roofline/1"])
    assert list(written["graphs"]) == ["text_encoder/b1.onnx"]
    assert len(written["graphs"]["text_encoder/b1.onnx"]["samples_ms"]) == 2
    assert written["options"]["device"] == "cpu"
    assert "| `text_encoder/b1.onnx` |" in result.output


@pytest.mark.usefixtures("_small")
def test_every_variant_can_be_measured(demo: Path) -> None:
    options = Options(device="cpu", rounds=1, components=("text_encoder",), every_variant=True)
    found = roofline(Bundle.open(demo), options)["graphs"]
    assert set(found) == {"text_encoder/b1.onnx", "text_encoder/b1.prompt.onnx"}


@pytest.mark.usefixtures("_small")
def test_an_unknown_component_names_near_ones(demo: Path) -> None:
    options = Options(components=("unets",))
    with pytest.raises(RequestError, match=r"unknown component 'unets': did you mean unet\?"):
        roofline(Bundle.open(demo), options)


def test_a_gpu_is_not_held_against_the_ceilings_of_the_cpu(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "resolve_device", lambda device: device)
    with pytest.raises(RequestError, match="device 'cuda' has no ceilings here, expected cpu or"):
        roofline(Bundle.open(demo), Options(device="cuda"))


def test_cpu_time_of_several_threads_is_refused() -> None:
    with pytest.raises(RequestError, match="all threads together, got 0 threads: use --threads 1"):
        Options(cpu_time=True)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(RequestError, match="rounds must be at least 1, got 0"):
        Options(rounds=0)


def test_a_rewritten_file_counts_in_the_plain_ones_place(rewritten: Bundle) -> None:
    options = Options(device="cpu", rounds=1, threads=1, components=("unet",))
    report = roofline(rewritten, options)
    files = {name: graph["file"] for name, graph in report["graphs"].items()}
    assert files["unet/128x128.b1.onnx"] == "128x128.b1.fp32.onnx"
    assert files["unet/128x128.b2.onnx"] == "128x128.b2.onnx"
    assert "| `unet/128x128.b1.fp32.onnx` |" in roofline_table(report)
    graph = report["graphs"]["unet/128x128.b1.onnx"]
    assert graph["plain_flops"] == graph["flops"], "it is a copy"
