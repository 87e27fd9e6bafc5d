"""How ``auto`` chooses: on any machine, with a second device that the tests make up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion import auto, engine_openvino, engine_ort, fingerprint
from edgediffusion.auto import Candidate, Chooser
from edgediffusion.engine import Arithmetic, Engine, EngineOptions, open_engine
from edgediffusion.hashing import cache_folder, recall
from edgediffusion.manifest import GraphSpec

REQUEST = ed.Request(prompt="a red circle", steps=1, seed=7)
INSTALLED = engine_openvino.is_installed()


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "cache"))


class Scaled:
    """A backend that computes what the CPU computes, times a factor."""

    def __init__(self, engine: Engine, factor: float, arithmetic: Arithmetic) -> None:
        self.engine, self.factor, self.arithmetic = engine, np.float32(factor), arithmetic

    def run(self, inputs: Any) -> list[Any]:
        return [out * self.factor for out in self.engine(**inputs).values()]

    def rest(self) -> None: ...

    def close(self) -> None:
        self.engine.close()


Opener = Callable[..., Engine]


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Opener], None]:
    """Let ``auto`` try a device "fast" before the CPU; the argument opens graphs on it."""

    def install(opener: Opener) -> None:
        def opening(spec: GraphSpec, folder: Path, device: str, *rest: Any) -> Engine:
            chosen = opener if device == "fast" else open_engine
            return chosen(spec, folder, device, *rest)

        first = Candidate("fast", "it is fast")
        monkeypatch.setattr(auto, "candidates", lambda: (first, Candidate("cpu", "it is there")))
        monkeypatch.setattr(auto, "open_engine", opening)
        backends = fingerprint.BACKENDS | {"fast": engine_ort.__name__}  # type: ignore[operator]
        monkeypatch.setattr(fingerprint, "BACKENDS", backends)

    return install


def scaled(factor: float, arithmetic: Arithmetic = "fp32", only: str = "") -> Opener:
    """Open graphs on the device "fast"; those with ``only`` in their name are scaled."""

    def opener(spec: GraphSpec, folder: Path, device: str, *rest: Any) -> Engine:
        backend = Scaled(
            open_engine(spec, folder, "cpu"), factor if only in spec.file else 1, arithmetic
        )
        return Engine(spec, device, backend, arithmetic)

    return opener


@pytest.mark.parametrize(
    ("bf16", "installed", "devices", "why"),
    [
        (True, True, ["openvino", "cpu"], "computes in bf16 on this CPU, which is fast"),
        (True, False, ["cpu"], "would be faster with its bf16: pip install"),
        (False, True, ["cpu"], "without fast bf16 nothing is reliably faster"),
        (False, False, ["cpu"], "without fast bf16 nothing is reliably faster"),
    ],
)
def test_the_rule(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, installed: bool, devices: list[str], why: str
) -> None:
    for name, value in (("computes_bf16", bf16), ("is_installed", installed)):
        monkeypatch.setattr(auto, name, lambda value=value: value)
    found = auto.candidates()
    assert [each.device for each in found] == devices
    assert why in found[0].why


def test_the_best_device_that_proves_itself_is_taken_and_said(
    demo: Path, second_device: Callable[[Opener], None]
) -> None:
    second_device(scaled(1))
    with ed.Pipeline.open(demo) as pipe:
        assert pipe.device == "fast"
        result = pipe.generate(REQUEST)
        assert pipe.device == result.device == "fast"
        assert pipe.device_reason.startswith("it is fast; 3 graphs proven, worst L2 ")
    recipe = result.recipe()
    assert recipe["device"] == "fast"
    assert recipe["arithmetic"] == "fp32"
    assert recipe["device_reason"] == result.device_reason == pipe.device_reason


def test_a_device_that_computes_something_else_is_passed_over_and_closed(
    demo: Path, second_device: Callable[[Opener], None]
) -> None:
    opened: list[Engine] = []
    wrong = scaled(1.001)

    def opener(*arguments: Any) -> Engine:
        opened.append(wrong(*arguments))
        return opened[-1]

    second_device(opener)
    with ed.Pipeline.open(demo) as pipe:
        assert pipe.generate(REQUEST).device == "cpu"
        assert "3 graphs proven" in pipe.device_reason
        assert "fast was passed over for vae_decoder/128x128.b1.onnx" in pipe.device_reason
        assert "misses its golden vectors: L2 1.0e-03, gate 1e-04" in pipe.device_reason
    assert len(opened) == 3
    assert all(engine._backend is None for engine in opened)


def test_bf16_is_held_to_its_own_gate(demo: Path, second_device: Callable[[Opener], None]) -> None:
    second_device(scaled(1.001, "bf16"))
    with ed.Pipeline.open(demo) as pipe:
        result = pipe.generate(REQUEST)
    assert (result.device, result.arithmetic) == ("fast", "bf16")


def test_graphs_may_need_two_devices(demo: Path, second_device: Callable[[Opener], None]) -> None:
    second_device(scaled(2, only="vae_decoder"))
    with ed.Pipeline.open(demo) as pipe:
        result = pipe.generate(REQUEST)
    assert result.device == "cpu+fast"
    assert "fast was passed over for vae_decoder" in result.device_reason


@pytest.mark.parametrize("error", [ed.DeviceError, ed.EngineError])
def test_a_device_that_does_not_load_is_passed_over(
    demo: Path, second_device: Callable[[Opener], None], error: type[Exception]
) -> None:
    def broken(*_: Any) -> Engine:
        raise error("it is broken\nin many lines")

    second_device(broken)
    with ed.Pipeline.open(demo) as pipe:
        pipe.embed(["a"])
        assert pipe.device == "cpu"
        assert pipe.device_reason.endswith(
            "fast was passed over for text_encoder/b1.onnx: it is broken"
        )


def test_when_no_device_is_right_all_reasons_are_given(
    demo: Path, second_device: Callable[[Opener], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    second_device(scaled(2))
    monkeypatch.setattr(auto, "open_engine", scaled(3))
    message = r"runs on no device that auto tries here:\n  fast: .*L2 2\.0.*\n  cpu: .*L2 2\.0"
    with ed.Pipeline.open(demo) as pipe, pytest.raises(ed.EngineError, match=message):
        pipe.embed(["a"])


def test_a_single_device_that_is_wrong_speaks_for_itself(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda: (Candidate("cpu", "it is there"),))
    monkeypatch.setattr(auto, "open_engine", scaled(2))
    message = r"^text_encoder/b1\.onnx on device 'cpu' in fp32 misses .* verify --device cpu$"
    with ed.Pipeline.open(demo) as pipe, pytest.raises(ed.EngineError, match=message):
        pipe.embed(["a"])


def test_a_device_asked_for_by_name_is_neither_proven_nor_changed(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "check_graph", lambda *_, **__: pytest.fail("it was proven"))
    with ed.Pipeline.open(demo, device="cpu") as pipe:
        result = pipe.generate(REQUEST)
    assert (result.device, result.device_reason) == ("cpu", "asked for by name")
    monkeypatch.setattr(auto, "open_engine", scaled(2))  # as wrong as it may be
    with ed.Pipeline.open(demo, device="cpu") as pipe:
        assert pipe.embed(["a"]).hidden.size
        assert pipe.device == "cpu"


def test_a_named_device_that_is_not_there_is_an_error_at_once(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_openvino.source(), "_PACKAGE", "no_such_package")
    with pytest.raises(ed.DeviceError, match="device 'openvino' "):
        ed.Pipeline.open(demo, device="openvino")


@pytest.fixture
def only_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "candidates", lambda: (Candidate("cpu", "it is there"),))


def embed_once(demo: Path, threads: int = 0) -> None:
    with ed.Pipeline.open(demo, threads=threads) as pipe:
        pipe.embed(["a"])


@pytest.mark.usefixtures("only_the_cpu")
def test_a_proof_is_remembered_until_something_changes(
    demo: Path, proofs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_once(demo)
    embed_once(demo)
    assert len(proofs) == 1
    embed_once(demo, threads=1)
    assert len(proofs) == 2
    monkeypatch.setattr(engine_ort, "libraries", lambda: {"onnxruntime": "99"})
    embed_once(demo)
    assert len(proofs) == 3
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    embed_once(demo)
    assert len(proofs) == 4


@pytest.mark.parametrize("build", ["", "one", None])
def test_a_build_that_is_not_kept_is_proven_at_each_start(
    demo: Path,
    second_device: Callable[[Opener], None],
    proofs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    build: str | None,
) -> None:
    """As with ``cuda``, whose kernels are timed and chosen anew whenever a graph is opened."""
    monkeypatch.setattr(Scaled, "build", build, raising=False)
    second_device(scaled(1))
    for _ in range(2):
        embed_once(demo)
    assert len(proofs) == (2 if build is None else 1)
    monkeypatch.setattr(Scaled, "build", "another", raising=False)
    embed_once(demo)
    assert len(proofs) == (3 if build is None else 2)


@pytest.mark.usefixtures("only_the_cpu")
@pytest.mark.parametrize("content", [b"junk", b"[1]", b'{"x": 1}'])
def test_a_damaged_memory_is_no_proof(demo: Path, proofs: list[str], content: bytes) -> None:
    embed_once(demo)
    (cache_folder() / "self-tests.json").write_bytes(content)
    embed_once(demo)
    assert len(proofs) == 2


@pytest.mark.usefixtures("only_the_cpu")
@pytest.mark.parametrize("value", ["nan", "1e9", "none"])
def test_a_memory_of_a_miss_is_no_verdict(demo: Path, proofs: list[str], value: str) -> None:
    embed_once(demo)
    store = cache_folder() / "self-tests.json"
    (error,) = recall("self-tests").values()
    store.write_text(store.read_text().replace(error, value))
    embed_once(demo)
    embed_once(demo)
    assert len(proofs) == 2


@pytest.mark.usefixtures("only_the_cpu")
def test_without_a_cache_every_start_is_proven(
    demo: Path, proofs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEDIFFUSION_CACHE", str(tmp_path / "file" / "below"))
    with pytest.warns(RuntimeWarning, match="the engine cache in .* cannot be used"):
        embed_once(demo)
    embed_once(demo)
    assert len(proofs) == 2


def test_what_a_graph_is_made_of_decides_its_content(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    graphs = [g for c in bundle.manifest.components.values() for g in c.graphs]
    assert len({bundle.content(graph) for graph in graphs}) == len(graphs)


def test_a_fingerprint_knows_no_order_and_misses_nothing() -> None:
    one = fingerprint.fingerprint({"a": "1", "b": "2"})
    assert one == fingerprint.fingerprint({"b": "2", "a": "1"})
    others = [{"a": "1"}, {"a": "1", "b": "3"}, {"a": "12", "b": ""}, {"ab": "1", "b": "2"}]
    assert one not in {fingerprint.fingerprint(facts) for facts in others}


@pytest.mark.skipif(not INSTALLED, reason="the extra openvino is not installed")
def test_openvino_proves_itself_in_the_arithmetic_of_this_machine(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda: (Candidate("openvino", "it is there"),))
    chooser = Chooser(ed.Bundle.open(demo), "auto", EngineOptions())
    assert chooser.arithmetic == ""
    with chooser.open(chooser._bundle.graph("text_encoder")) as engine:
        assert (chooser.device, chooser.arithmetic) == ("openvino", engine.arithmetic)
    assert "1 graph proven" in chooser.reason


@pytest.mark.parametrize(
    ("bf16", "int8", "why"),
    [
        (True, True, "OpenVINO in bf16 may be as fast here with an fp32 bundle"),
        (False, True, "with the CPU's integer dot products"),
        (False, False, "without VNNI an fp32 bundle may be as fast here"),
    ],
)
def test_int8_bundles_run_on_the_cpu_and_auto_says_what_else_would_do(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, int8: bool, why: str
) -> None:
    monkeypatch.setattr(auto, "computes_bf16", lambda: bf16)
    monkeypatch.setattr(auto, "computes_int8", lambda: int8)
    (found,) = auto.int8_candidates()
    assert found.device == "cpu"
    assert why in found.why
