"""What a device compiled is kept, and trusted only as long as it is what was written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

import edgediffusion as ed
from edgediffusion import (
    engine_cache,
    engine_openvino,
    engine_ort,
    openvino_native,
    openvino_plugin,
)
from edgediffusion.engine import Engine, EngineOptions, open_engine
from edgediffusion.engine_ort import Preparer
from edgediffusion.graph_bytes import half_weights
from edgediffusion.hashing import sha256_file
from edgediffusion.manifest import GraphSpec

needs_openvino = pytest.mark.skipif(
    not engine_openvino.is_installed(), reason="OpenVINO for this CPU is not installed"
)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "_warned", set())


@pytest.fixture(params=["cpu", pytest.param("openvino", marks=needs_openvino)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that were compiled, not loaded from the cache."""
    graphs: list[Path] = []

    def count(kind: Any) -> None:
        honest = kind.compile

        def counting(self: Any, path: Path, folder: Path | None = None) -> Any:
            graphs.append(path)
            return honest(self, path, folder)

        monkeypatch.setattr(kind, "compile", counting)

    count(engine_ort.Preparer)
    count(openvino_plugin.OpenVinoCompiler)
    count(openvino_native.NativeCompiler)
    return graphs


def open_text_encoder(
    folder: Path, device: str, threads: int = 1, spec: GraphSpec | None = None
) -> Engine:
    bundle = ed.Bundle.open(folder)
    graph = bundle.graph("text_encoder")
    options = EngineOptions(threads=threads)
    return open_engine(spec or graph, bundle.path, device, options, bundle.content(graph))


def run(engine: Engine) -> list[bytes]:
    zeros = {t.name: np.zeros(t.shape, t.dtype) for t in engine.spec.inputs}
    return [out.tobytes() for out in engine(**zeros).values()]


def outputs(folder: Path, device: str) -> list[bytes]:
    with open_text_encoder(folder, device) as engine:
        return run(engine)


def the_entry() -> Path:
    (entry,) = engine_cache.engine_cache().entries()
    return entry.folder


def test_the_second_start_loads_what_the_first_compiled(
    demo: Path, device: str, compiled: list[Path]
) -> None:
    with open_engine(
        ed.Bundle.open(demo).graph("text_encoder"), demo, device, EngineOptions(threads=1)
    ) as engine:
        uncached = run(engine)
    compiled.clear()
    assert outputs(demo, device) == uncached
    assert outputs(demo, device) == uncached
    assert len(compiled) == 1
    with open_text_encoder(demo, device, threads=2):
        assert len(compiled) == 2, "other options are another engine"


@pytest.mark.skipif(sys.platform == "win32", reason="folders of mapped files cannot be moved there")
def test_large_float16_weights_are_widened_in_a_pass_of_their_own(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = outputs(demo, "cpu")
    shutil.rmtree(the_entry())
    passes: list[Path] = []
    monkeypatch.setattr(engine_ort, "_WIDENED_APART", 1)
    widen = Preparer._widen

    def watched(self: Preparer, path: Path, folder: Path) -> Path:
        passes.append(widen(self, path, folder))
        assert half_weights(path) > 0
        assert half_weights(passes[0]) == 0
        assert "Cast" not in [node.op_type for node in weights_readers(passes[0])]
        return passes[0]

    monkeypatch.setattr(Preparer, "_widen", watched)
    assert outputs(demo, "cpu") == at_once
    assert outputs(demo, "cpu") == at_once
    assert len(passes) == 1
    assert sorted(path.name for path in the_entry().iterdir()) == [
        "entry.json",
        "prepared.bin",
        "prepared.onnx",
    ]


def weights_readers(path: Path) -> list[onnx.NodeProto]:
    graph = onnx.load(path, load_external_data=False).graph
    weights = {each.name for each in graph.initializer}
    return [node for node in graph.node if set(node.input) & weights]


def test_the_bundles_weights_are_not_read_again(copied: Path, device: str) -> None:
    first = outputs(copied, device)
    bundle = ed.Bundle.open(copied)
    graph = bundle.graph("text_encoder")
    (copied / "text_encoder" / "weights.safetensors").unlink()
    options = EngineOptions(threads=1)
    with open_engine(graph, copied, device, options, bundle.content(graph)) as engine:
        assert run(engine) == first


def test_a_copy_of_a_bundle_is_the_same(
    demo: Path, copied: Path, device: str, compiled: list[Path]
) -> None:
    outputs(demo, device)
    outputs(copied, device)
    assert len(compiled) == 1


@needs_openvino
def test_each_device_has_engines_of_its_own(demo: Path, compiled: list[Path]) -> None:
    outputs(demo, "cpu")
    outputs(demo, "openvino")
    assert len(compiled) == len(engine_cache.engine_cache().entries()) == 2


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_compiled_anew(
    demo: Path, device: str, compiled: list[Path], where: float
) -> None:
    first = outputs(demo, device)
    blob = next(the_entry().glob("*.bin"))
    data = bytearray(blob.read_bytes())
    data[int(where * len(data))] ^= 16
    blob.write_bytes(data)
    assert outputs(demo, device) == first
    assert len(compiled) == 2
    assert outputs(demo, device) == first
    assert len(compiled) == 2


def test_an_intact_entry_that_the_library_refuses_is_compiled_anew(
    demo: Path, device: str, compiled: list[Path]
) -> None:
    first = outputs(demo, device)
    entry = the_entry()
    graph = max(entry.glob("*.[ob]*"), key=lambda path: path.suffix == ".onnx")
    graph.write_bytes(b"made by another version")
    facts = msgspec.json.decode((entry / "entry.json").read_bytes())
    facts["files"][graph.name] = {"size": graph.stat().st_size, "sha256": sha256_file(graph)}
    (entry / "entry.json").write_bytes(msgspec.json.encode(facts))
    assert outputs(demo, device) == first
    assert len(compiled) == 2


def test_an_engine_in_use_holds_its_entry(demo: Path, device: str) -> None:
    outputs(demo, device)
    cache = engine_cache.engine_cache()
    with open_text_encoder(demo, device):
        assert len(cache.clear()) == 1
    assert cache.clear() == []


def test_a_graph_that_is_not_the_manifests_lets_its_entry_go(demo: Path, device: str) -> None:
    outputs(demo, device)
    graph = ed.Bundle.open(demo).graph("text_encoder")
    other = msgspec.structs.replace(graph, outputs=graph.outputs[:1])
    with pytest.raises(ed.EngineError, match="is not the graph that the manifest describes"):
        open_text_encoder(demo, device, spec=other)
    assert engine_cache.engine_cache().clear() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit a file's size")
@pytest.mark.parametrize("most", [100, 1_000_000])
def test_a_disk_that_fills_up_while_a_library_writes(
    demo: Path, device: str, tmp_path: Path, most: int
) -> None:
    code = f"""
import sys, resource, warnings
sys.path[:] = {sys.path!r}
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
warnings.simplefilter("always")
import edgediffusion as ed
for _ in range(2):
    with ed.Pipeline.open({str(demo)!r}, device={device!r}) as pipe:
        assert pipe.embed(["a"]).hidden.size
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("engines are compiled anew at each start") == 1
    engines = tmp_path / "cache" / "engines"
    assert {path.name for path in engines.iterdir()} <= {".lock"}


def test_the_command_line_says_in_one_line_that_there_is_no_cache(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    code = f"import sys; sys.path[:] = {sys.path!r}; from edgediffusion.cli import main; main()"
    command = [sys.executable, "-c", code, "embed", "x", "--device", device]
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "file"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"note: the engine cache in {tmp_path / 'file' / 'engines'} cann")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("version", "packs"), [("1.31.1", False), ("1.32.0", True), ("2.0", True)])
def test_packed_weights_are_kept_only_where_they_can_be_used(version: str, packs: bool) -> None:
    """ONNX Runtime 1.31.1, the newest onnxruntime-gpu, crashes when it runs what it packed."""
    entries = engine_ort.prepared_entries(version)
    assert ("save_external_prepacked_constant_initializers" in entries) == packs
    assert entries["optimized_model_external_initializers_file_name"] == "prepared.bin"


def test_engines_with_and_without_packed_weights_are_kept_apart(
    demo: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for entries in (engine_ort._PREPARED, engine_ort._PREPARED | engine_ort._PACKED):
        monkeypatch.setattr(engine_ort, "prepared_entries", lambda version, e=entries: e)
        for _ in range(2):
            open_text_encoder(demo, "cpu").close()
    assert len(compiled) == 2
