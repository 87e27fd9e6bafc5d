"""Open graphs on a made-up GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion.engine import Engine, open_engine
from edgediffusion.golden import golden_inputs, read_tensors
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
