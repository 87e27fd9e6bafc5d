"""Open graphs on a made-up GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion.engine import Engine, open_engine
from edgediffusion.golden import check_graph, golden_inputs, read_tensors
from tests.runtime.fake_tensorrt import FakeTensorRt


def install(fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a made-up library and its GPU where edgediffusion imports them from."""
    monkeypatch.setitem(sys.modules, fake.name, fake.module())
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake.gpu.module())


def opened(folder: Path, device: str, component: str = "text_encoder") -> Engine:
    """Open a graph the way a Pipeline does, with its content for the cache."""
    bundle = ed.Bundle.open(folder)
    spec = bundle.graph(component, size=(64, 64))
    return open_engine(spec, bundle.path, device, None, bundle.content(spec))


def inputs_of(folder: Path, engine: Engine) -> dict[str, Any]:
    """The inputs of a graph's first golden case."""
    bundle = ed.Bundle.open(folder)
    tensors = read_tensors(bundle.file(bundle.component_of(engine.spec).golden))
    return golden_inputs(engine.spec.golden[0], engine.spec, tensors)


def prove_all(folder: Path, device: str) -> None:
    """Hold every graph of an fp16 bundle to its golden vectors."""
    bundle = ed.Bundle.open(folder)
    for component in bundle.manifest.components.values():
        tensors = read_tensors(bundle.file(component.golden))
        for graph in component.graphs:
            with open_engine(graph, bundle.path, device) as engine:
                assert (engine.device, engine.arithmetic) == (device, "fp16")
                assert check_graph(engine, tensors) <= bundle.gate(graph, "fp16"), graph.file


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full whenever a file of that name is written."""
    write = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name == name:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
