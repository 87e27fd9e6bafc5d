from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion.engine import Engine
from edgediffusion.errors import RequestError
from edgediffusion.manifest import GraphSpec, Parity, PartSpec
from edgediffusion.residency import Residents

REQUEST = ed.Request(prompt="a red circle", steps=2, seed=7)
SMALL, LARGE = (64, 64), (128, 128)


def graph(file: str, size: tuple[int, int] | None = None, parts: int = 0) -> GraphSpec:
    return GraphSpec(
        file=file,
        batch=1,
        precision="fp32",
        inputs=(),
        outputs=(),
        parity=Parity(0, 0, 0, 0),
        golden=(),
        size=size,
        parts=tuple(PartSpec(f"{file}.{n}", (), ()) for n in range(parts)),
    )


TEXT = graph("text_encoder/b1.onnx")
UNETS = [graph("unet/64x64.b1.onnx", SMALL, 2), graph("unet/64x64.b2.onnx", SMALL, 2)]
LARGE_UNET = graph("unet/128x128.b1.onnx", LARGE, 2)
DECODER = graph("vae_decoder/64x64.b1.onnx", SMALL)


class Machine:
    """Opens graphs that compute nothing, and tells which are open."""

    def __init__(self, residency: Any) -> None:
        self.opened: list[tuple[str, bool]] = []
        self.open: set[str] = set()
        self.rested: list[str] = []
        self.residents = Residents(self._open, residency)

    def _open(self, spec: GraphSpec, lean: bool) -> Engine:
        self.opened.append((spec.file, lean))
        self.open.add(spec.file)
        machine = self

        class Idle:
            arithmetic = "fp32"

            def run(self, inputs: Any) -> list[Any]:
                return []

            def rest(self) -> None:
                machine.rested.append(spec.file)

            def close(self) -> None:
                machine.open.remove(spec.file)

        return Engine(spec, "cpu", Idle())

    def use(self, *specs: GraphSpec) -> Sequence[Engine]:
        return [self.residents.get(spec) for spec in specs]


def test_all_that_was_loaded_stays() -> None:
    machine = Machine("all")
    machine.use(TEXT, *UNETS, DECODER, TEXT)
    assert len(machine.opened) == len(machine.open) == 4
    machine.residents.close()
    assert machine.open == set()


def test_graphs_work_in_memory_only_while_it_is_their_components_turn() -> None:
    machine = Machine("all")
    machine.use(TEXT, *UNETS, *UNETS)
    assert machine.rested == [TEXT.file]
    machine.use(DECODER)
    assert machine.rested[1:] == [TEXT.file, *(spec.file for spec in UNETS)]
    machine.residents.rest()
    assert machine.rested[-1] == DECODER.file
    assert len(machine.open) == 4


def test_a_picture_ends_with_all_graphs_at_rest(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rested: list[str] = []
    monkeypatch.setattr(Engine, "rest", lambda engine: rested.append(engine.spec.file))
    with ed.Pipeline.open(demo) as alone:
        alone.generate(REQUEST)
        assert {file.partition("/")[0] for file in rested[-3:]} == {
            "text_encoder",
            "unet",
            "vae_decoder",
        }


@pytest.mark.parametrize("residency", ["one", "stream"])
def test_of_one_component_at_a_time_all_graphs_stay(residency: str) -> None:
    machine = Machine(residency)
    machine.use(TEXT)
    machine.use(*UNETS, *UNETS)
    assert machine.open == {spec.file for spec in UNETS}
    machine.use(DECODER)
    assert machine.open == {DECODER.file}
    machine.use(TEXT)
    assert [file for file, _ in machine.opened].count(TEXT.file) == 2
    assert {lean for _, lean in machine.opened} == {residency == "stream"}


def test_graphs_of_other_sizes_make_room_when_a_run_begins() -> None:
    machine = Machine("all")
    machine.use(TEXT, *UNETS, DECODER)
    machine.residents.begin("all", {LARGE})
    assert machine.open == {TEXT.file}
    machine.use(LARGE_UNET)
    machine.residents.begin("all", {LARGE, SMALL})
    assert machine.open == {TEXT.file, LARGE_UNET.file}


def test_another_residency_opens_anew_what_it_opens_differently() -> None:
    machine = Machine("all")
    machine.use(TEXT, UNETS[0])
    machine.residents.begin("one", {SMALL})
    assert machine.open == {TEXT.file, UNETS[0].file}
    machine.residents.begin("stream", {SMALL})
    assert machine.open == set()
    machine.use(UNETS[0])
    assert machine.opened[-1] == (UNETS[0].file, True)


def test_one_component_at_a_time_makes_the_same_picture(demo: Path, pipe: ed.Pipeline) -> None:
    with ed.Pipeline.open(demo, residency="one") as frugal:
        for _ in range(2):
            result = frugal.generate(REQUEST)
            assert result.images.tobytes() == pipe.generate(REQUEST).images.tobytes()
            assert result.timings.stages["load"] > 0


def test_what_a_bundle_cannot_have_is_refused(demo: Path) -> None:
    with pytest.raises(RequestError, match=r"has no graphs in parts .* export again with --split"):
        ed.Pipeline.open(demo, residency="stream")
    with pytest.raises(RequestError, match="unknown residency 'x': known: all, one, stream"):
        ed.Pipeline.open(demo, residency="x")
