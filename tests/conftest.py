"""Fixtures shared by all tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import edgediffusion as ed
from edgediffusion import auto
from edgediffusion.bundle import find_bundle
from edgediffusion.hashing import sha256_file
from edgediffusion.manifest import FileSpec, Rewritten
from edgediffusion.manifest_file import dump_manifest, read_manifest
from tests.bundles import export_tiny


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _auto_takes_the_cpu() -> Iterator[None]:
    """Let ``auto`` mean ``cpu``, and so float32, whatever the CPU that the tests run on could do.

    Tests of what ``auto`` chooses say themselves what there is.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "computes_bf16", lambda: False)
        yield


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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny float32 checkpoint with a tiny VAE. Nobody may change it: copy it first."""
    from tests.checkpoints import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_vae=True)


@pytest.fixture(scope="session")
def tiny_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle of the tiny checkpoint. Nobody may change it."""
    return export_tiny(checkpoint, tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def parts_bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint for small machines: UNet in parts, decoder tiles, two sizes."""
    return export_tiny(
        checkpoint,
        tmp_path_factory.mktemp("parts") / "tiny",
        sizes=((64, 64), (128, 64)),
        split=3,
        decoder_tiles=((32, 32),),
    )


@pytest.fixture
def rewritten(copied: Path) -> ed.Bundle:
    """The demo, whose plain UNet of batch 1 has a second file: here a copy of the first."""
    manifest = read_manifest(copied)
    unet = manifest.components["unet"]
    first, *rest = unet.graphs
    file = first.file.replace(".onnx", ".fp32.onnx")
    shutil.copyfile(copied / first.file, copied / file)
    size, digest = (copied / file).stat().st_size, sha256_file(copied / file)
    changed = msgspec.structs.replace(first, fp32=Rewritten(file, {"winograd": 1}))
    component = msgspec.structs.replace(unet, graphs=(changed, *rest))
    new = msgspec.structs.replace(
        manifest,
        components=manifest.components | {"unet": component},
        files=manifest.files | {file: FileSpec(size, digest)},
    )
    (copied / "manifest.json").write_bytes(dump_manifest(new))
    return ed.Bundle.open(copied)
