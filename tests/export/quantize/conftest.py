"""Bundles of the tiny checkpoint with int8 graphs, exported once and shared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import export_tiny


@pytest.fixture(scope="session")
def dynamic_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with dynamic int8 of 7-bit weights. Nobody may change it."""
    folder = tmp_path_factory.mktemp("int8")
    return export_tiny(
        checkpoint,
        folder / "dynamic",
        precision="int8-dynamic",
        reduce_range=True,
        batches=(2,),
    )


@pytest.fixture(scope="session")
def static_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with static int8, calibrated with two prompts. Nobody may change it."""
    folder = tmp_path_factory.mktemp("int8")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle\na blue circle\n", encoding="utf-8")
    return export_tiny(
        checkpoint,
        folder / "static",
        precision="int8",
        calibrate=prompts,
        steps=3,
        batches=(2,),
        deepcache=True,
    )
