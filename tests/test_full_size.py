"""Stable Diffusion 1.5's true architecture, once, outside the default run.

    EDGEDIFFUSION_FULL_SIZE=DIR python -m pytest -m full_size

DIR keeps the checkpoint and the bundle between runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.full_size
pytest.importorskip("torch")
pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from benchmarks.full_size import measure

    kept = os.environ.get("EDGEDIFFUSION_FULL_SIZE")
    return measure(Path(kept) if kept else tmp_path_factory.mktemp("full_size"))


def test_every_graph_computes_what_pytorch_computes(figures: Any) -> None:
    assert {name: p["l2"] for name, p in figures["parity"].items() if p["l2"] > 1e-4} == {}


def test_the_picture_is_diffusers_picture(figures: Any) -> None:
    picture = figures["picture"]
    assert picture["latents_l2"] <= 1e-3
    assert picture["psnr_db"] >= 60
    assert picture["picture_std"] > 10, "a flat picture would prove nothing"


def test_the_runtimes_own_share_is_small(figures: Any) -> None:
    shares = sorted(figures["bench"]["own_share"])
    assert shares[len(shares) // 2] <= 0.005
