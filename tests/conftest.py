"""Fixtures shared by all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgediffusion as ed
from edgediffusion.bundle import find_bundle


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo bundle inside the package. Nobody may change it: copy it first."""
    return find_bundle("shapes")


@pytest.fixture
def copied(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle to break."""
    return Path(shutil.copytree(demo, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def pipe(demo: Path) -> Iterator[ed.Pipeline]:
    """One open pipeline on the demo bundle, shared: it keeps no state between calls."""
    with ed.Pipeline.open(demo) as pipeline:
        yield pipeline
