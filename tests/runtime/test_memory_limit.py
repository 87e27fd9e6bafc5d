from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgediffusion as ed
from edgediffusion import memory_limit
from edgediffusion.cli import main
from edgediffusion.errors import RequestError
from edgediffusion.graph_bytes import GraphBytes
from edgediffusion.memory_limit import (
    HELD,
    LIBRARIES,
    LOADING,
    WORKING,
    MemoryLimit,
    _staying,
    estimate,
    plan_memory,
    request_graphs,
)
from edgediffusion.request import plan_request

GIB = 1 << 30
REQUEST = ed.Request(prompt="a red circle", steps=2, seed=7)
MEASURE = """
import sys
import edgediffusion as ed
from edgediffusion.machine import peak_memory_mib
with ed.Pipeline.open(residency=sys.argv[1], device="cpu") as pipe:
    pipe.generate(ed.Request(prompt="a red circle", steps=2, seed=7, batch=1))
print(peak_memory_mib())
"""


@pytest.fixture
def bundle(demo: Path) -> ed.Bundle:
    return ed.Bundle.open(demo)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the demo's graphs be as large as those of Stable Diffusion."""
    sizes = {
        "text_encoder": GraphBytes(GIB // 2, 0),
        "unet": GraphBytes(4 * GIB, 2 * GIB),
        "vae_decoder": GraphBytes(GIB // 4, GIB),
        "vae_tiny_decoder": GraphBytes(0, GIB // 8),
    }
    monkeypatch.setattr(memory_limit, "_known_bytes", lambda path, _: sizes[path.parent.name])


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize("residency", ["all", "one"])
def test_the_estimate_holds_and_is_not_far_off(
    bundle: ed.Bundle, residency: str, tmp_path: Path
) -> None:
    """A first start, with an empty cache, in a process of its own."""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "EDGEDIFFUSION_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, residency],
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=True,
    )
    peak = float(done.stdout) * 2**20
    plan = plan_request(REQUEST, bundle)
    graphs = request_graphs(bundle, plan, plan.size)
    assert peak <= estimate(bundle, graphs, residency) <= 1.6 * peak  # type: ignore[arg-type]


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("limit", "residency"), [("8.8GiB", "all"), ("8.7GiB", "one"), ("8.2GiB", "one")]
)
def test_the_first_way_that_fits_is_taken(bundle: ed.Bundle, limit: str, residency: str) -> None:
    plan = plan_request(REQUEST, bundle)
    chosen = plan_memory(bundle, plan, MemoryLimit.of(limit))
    assert (chosen.residency, chosen.tile) == (residency, (128, 128))
    assert chosen.estimate <= MemoryLimit.of(limit).size


@pytest.mark.usefixtures("large")
def test_what_does_not_fit_is_refused_with_the_figure_it_needs(bundle: ed.Bundle) -> None:
    plan = plan_request(REQUEST, bundle)
    message = (
        r"shapes at 128x128 takes at least 8.1 GiB \(residency 'one', decoder tiles of 128x128\), "
        r"more than max_memory 1.0 GiB: raise it, or export again with --split 8"
    )
    with pytest.raises(RequestError, match=message):
        plan_memory(bundle, plan, MemoryLimit.of("1GiB"))
    with pytest.raises(RequestError, match=r"takes at least 8.7 GiB \(residency 'all'"):
        plan_memory(bundle, plan, MemoryLimit.of("8.6GiB", "all"))


@pytest.mark.usefixtures("large")
def test_graphs_that_a_request_uses_together_add_up(bundle: ed.Bundle) -> None:
    def need(**options: object) -> int:
        plan = plan_request(ed.Request(**options), bundle)  # type: ignore[arg-type]
        return estimate(bundle, request_graphs(bundle, plan, plan.size), "one")

    running = round(HELD * 4 * GIB) + round(WORKING * 2 * GIB)
    loading = LIBRARIES + round(LOADING * 4 * GIB)
    assert need() == need(guidance=1.0) == need(decoder="tiny") == loading
    assert need(guidance_interval=(0.3, 5.0)) == LIBRARIES + 2 * running
    assert need(guidance_every=2) == LIBRARIES + 2 * running
    assert need(deepcache_interval=2) == LIBRARIES + 2 * running


def test_weights_stay_and_pools_are_of_one_component_at_a_time() -> None:
    unet, decoder = [GraphBytes(100, 1000), GraphBytes(0, 3000)], [GraphBytes(50, 100)]
    assert _staying([unet, decoder]) == 120 + 1200 + 3600 + 60
    assert _staying([decoder, unet]) == 60 + 120 + 1200 + 3600
    assert _staying([[GraphBytes(100, 0)], [GraphBytes(1000, 1)]]) == 120 + 2000
    assert _staying([[GraphBytes(100, 0), GraphBytes(1000, 1)]]) == 120 + 2000


def test_a_pipeline_keeps_to_its_limit_and_says_how(demo: Path) -> None:
    with ed.Pipeline.open(demo, max_memory="1GB") as roomy:
        result = roomy.generate(REQUEST)
        assert (result.residency, result.device) == ("all", "cpu")
        assert "for max_memory" in result.device_reason
    message = r"takes at least 1\d\d.\d MiB .* max_memory 10.0"
    with (
        ed.Pipeline.open(demo, max_memory=10 * 2**20) as tight,
        pytest.raises(RequestError, match=message),
    ):
        tight.stream(REQUEST)


def test_a_limit_that_makes_no_sense_is_refused(demo: Path) -> None:
    with pytest.raises(RequestError, match="max_memory 'much' is not a size such as"):
        ed.Pipeline.open(demo, max_memory="much")
    with pytest.raises(RequestError, match="max_memory is known for device 'cpu' only, got 'openv"):
        ed.Pipeline.open(demo, max_memory="1GB", device="openvino")


def test_the_command_line_says_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a", "-o", str(tmp_path / "a.png"), "--steps", "1", "--seed", "7"]
    assert main([*command, "--max-memory", "1GB"]) == 0
    assert "note: residency all, for --max-memory 1GB" in capsys.readouterr().err
    assert main([*command, "--max-memory", "20MB"]) == 1
    assert "more than max_memory 19.1 MiB" in capsys.readouterr().err
