"""benchmarks/gpu.py without a GPU: its plan, its networks, its tables, and what it says."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch

import edgediffusion as ed
from benchmarks import gpu, gpu_contenders, gpu_field, gpu_pictures
from benchmarks.gpu_contenders import Contender, contenders, traced
from benchmarks.gpu_field import Ceiling, Field
from benchmarks.gpu_graphs import Subject, prepared, with_plan
from benchmarks.gpu_pieces import (
    BARE,
    EAGER,
    OURS,
    RIVAL,
    UNCAPTURED,
    UNFUSED,
    Piece,
    all_pieces,
    chosen_pieces,
)
from benchmarks.gpu_tables import (
    PICTURE,
    STEP,
    bars,
    best_ms,
    ceilings_table,
    layout,
    pieces_table,
    tables,
)
from benchmarks.reports import read_report, write_report
from edgediffusion import engine_cuda, tensorrt_library
from edgediffusion.engine import Engine, open_engine
from edgediffusion.tensorrt_build import Plan
from edgediffusion_export import plans
from edgediffusion_export.graphs import NETWORKS
from tests.checkpoints import TEXT_WIDTH, TINY_UNET
from tests.runtime.fake_cuda import FakeGpu
from tests.runtime.fake_tensorrt import FakeTensorRt
from tests.runtime.nvidia import A_GPU
from tests.runtime.on_fake_gpu import install

TINY: Any = Piece("sd15", "unet", 64)
TINY_XL = replace(
    TINY_UNET,
    config={
        **TINY_UNET.config,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 1280 + 6 * 8,
    },
)


ON_AN_H200 = {
    "gpu": {"name": "NVIDIA H200", "capability": [9, 0], "driver": "580.65.06"},
    "torch": "2.13.0",
    "machine": {"libraries": {"numpy": "2", "onnxruntime-gpu": "1.31.1"}},
}


def report_of(**pieces: Any) -> dict[str, Any]:
    keys = {"step": STEP, "picture": PICTURE}
    return ON_AN_H200 | {"pieces": {keys[name]: piece for name, piece in pieces.items()}}


def fake_piece(**samples: list[float]) -> dict[str, Any]:
    names = {"ours": OURS, "rival": RIVAL, "eager": EAGER, "bare": BARE}
    times = {names[name]: values for name, values in samples.items()}
    return {
        "complete": True,
        "pictures": 1,
        "samples_ms": times,
        "memory_mib": dict.fromkeys(times, 2048.0),
        "absent": {"tensorrt": "DeviceError: it is not installed"},
        "operators": {"GroupNorm": 61},
        "flops": 1.36e12,
        "bytes": 3e9,
        "ceilings": {
            "fp16 product": {"work": 1.1e12, "samples_ms": [1.4] * 3},
            "copy on the GPU": {"work": 2e9, "samples_ms": [0.5] * 3},
        },
    }


def test_every_piece_has_a_name_of_its_own_and_what_matters_comes_first() -> None:
    pieces = list(all_pieces())
    keys = [piece.key for piece in pieces]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "sd15/unet/512/1"
    assert {piece.size for piece in pieces if piece.architecture == "sdxl"} == {512, 768, 1024}
    assert [p.rows for p in pieces if p.key.startswith("sd15/unet/512/")] == [2, 4, 8, 16, 32]


def test_finished_pieces_are_not_measured_again() -> None:
    done = {"sd15/unet/512/1": {"complete": True}, "sd15/unet/512/2": {"complete": False}}
    left = chosen_pieces(["sd15/unet/512"], done)
    assert [piece.key for piece in left] == [f"sd15/unet/512/{n}" for n in (2, 4, 8, 16)]
    assert len(chosen_pieces([], done)) == len(list(all_pieces())) - 1


def test_an_unknown_piece_names_the_near_ones() -> None:
    with pytest.raises(ed.RequestError, match="unknown piece 'sd15/unet/51': did you mean sd15/un"):
        chosen_pieces(["sd15/unet/51"], {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing_and_what_it_would_measure() -> None:
    with pytest.raises(ed.DeviceError, match=r"device 'cuda' .* this measures, .*sd15/unet/512/1"):
        gpu.require_gpu()


def test_a_pytorch_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "require_cuda", lambda: A_GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ed.DeviceError, match="sees no GPU: install PyTorch's wheels for CUDA"):
        gpu.require_gpu()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Subject]:
    with prepared(TINY, TINY_UNET) as subject:
        yield subject


def test_a_networks_graphs_are_those_of_its_module(tiny: Subject) -> None:
    spec = tiny.spec
    assert [t.shape for t in spec.inputs] == [(1, 4, 8, 8), (1,), (2, 77, TEXT_WIDTH)]
    assert spec.devices["cuda"].operators["MultiHeadAttention"] == 8
    assert (tiny.folder / spec.devices["cuda"].file).is_file()
    with open_engine(spec, tiny.folder, "cpu") as engine:
        got = engine(**tiny.inputs)["out_sample"].astype(np.float32)
    inputs = [torch.from_numpy(array) for array in tiny.inputs.values()]
    with torch.no_grad():
        want = tiny.network.call(tiny.module, *inputs).float().numpy()
    assert np.isfinite(want).all()
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


def test_sdxls_unet_takes_its_added_conditions() -> None:
    with prepared(Piece("sdxl", "unet", 64), TINY_XL) as subject:
        names = [tensor.name for tensor in subject.spec.inputs]
        assert names[-2:] == ["text_embeds", "time_ids"]
        with open_engine(subject.spec, subject.folder, "cpu") as engine:
            assert np.isfinite(engine(**subject.inputs)["out_sample"]).all()
        folder = subject.folder
    assert not folder.exists()


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU play the GPU for ONNX Runtime and PyTorch."""

    def opening(path: Path, options: Any, cuda: Any, entries: Any) -> Any:
        chosen = onnxruntime.SessionOptions()
        chosen.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(engine_cuda, "require_cuda", lambda: A_GPU)
    monkeypatch.setattr(engine_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(engine_cuda, "_PLACE", "cpu")
    monkeypatch.setattr(engine_cuda, "_open", opening)
    monkeypatch.setattr(gpu_field, "free_memory", lambda: 0)
    top = Ceiling(1e6, lambda: None)
    made = {"fp16 product": lambda: top, "copy on the GPU": lambda: top}
    monkeypatch.setattr(gpu, "gpu_ceilings", lambda: made)


@pytest.mark.usefixtures("on_the_cpu")
def test_a_piece_is_measured_and_whoever_fails_is_a_row(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(subject: Subject) -> Any:
        raise RuntimeError("no such kernel\nand more")

    def fail_without_a_word(subject: Subject) -> Any:
        raise MemoryError

    calls = itertools.count()

    def fail_later() -> None:
        if next(calls) > 2:
            raise RuntimeError("CUDA out of memory")

    def no_room() -> Any:
        raise torch.OutOfMemoryError("of 2 GiB")

    taking_part = [each for each in contenders("cpu") if each.name not in (OURS, UNCAPTURED, RIVAL)]
    assert {UNFUSED, EAGER, "tensorrt", "tensorrt-rtx"} <= {each.name for each in taking_part}
    everybody = [
        *taking_part,
        Contender("broken", fail),
        Contender("silent", fail_without_a_word),
        Contender("tired", lambda subject: nullcontext(fail_later)),
    ]
    monkeypatch.setattr(gpu, "contenders", lambda: everybody)
    monkeypatch.setattr(gpu, "prepared", lambda piece: nullcontext(tiny))
    tops = gpu.gpu_ceilings() | {"copy on the GPU": no_room}
    monkeypatch.setattr(gpu, "gpu_ceilings", lambda: tops)
    kept: list[dict[str, Any]] = []
    found = gpu.measure_piece(TINY, 2, lambda what: None, kept.append)
    assert found["absent"]["broken"] == "RuntimeError: no such kernel"
    assert found["absent"]["silent"] == "MemoryError"
    assert found["absent"]["tired"] == "RuntimeError: CUDA out of memory"
    assert found["absent"]["copy on the GPU"] == "OutOfMemoryError: of 2 GiB"
    assert set(found["ceilings"]) == {"fp16 product"}
    assert set(found["samples_ms"]) == {UNFUSED, EAGER}
    assert {len(samples) for samples in found["samples_ms"].values()} == {2}
    assert found["flops"] > 1e6
    assert found["operators"]["GroupNorm"] == 6
    assert found["complete"]
    assert len(kept) == len(everybody)
    assert not any(each["complete"] for each in kept)
    assert [EAGER in each["samples_ms"] for each in kept[-5:]] == [False, True, True, True, True]


def test_weights_that_another_put_on_the_gpu_are_counted(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(each.nbytes for each in tiny.module.parameters())
    held = {each.name: each.held(tiny) for each in contenders("cpu")}
    assert held[EAGER] == held[RIVAL] == size
    assert {held[name] for name in held.keys() - {EAGER, RIVAL}} == {0}
    assert gpu_contenders.held_weights(tiny, tiny, place="cuda") == 0
    free = iter([10 << 20, 7 << 20])
    monkeypatch.setattr(gpu_field, "free_memory", lambda: next(free))
    field = Field()
    field.add("eager", lambda: lambda: None, held=2 << 20)
    assert field.memory == {"eager": 5.0}


@pytest.mark.usefixtures("on_the_cpu")
def test_nothing_is_copied_where_the_captured_graph_runs_alone(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = msgspec.structs.replace(tiny.spec, devices={})
    subject = replace(tiny, spec=plain)
    (bare,) = [each for each in contenders("cpu") if each.name == BARE]
    with bare.open(subject) as run:
        backend: Any = run.__self__  # type: ignore[attr-defined]
        sample = backend._inputs["sample"].numpy()
        monkeypatch.setattr(type(backend), "_run", lambda *rest: pytest.fail("it copies"))
        run()
        assert not sample.any()
        assert backend._outputs[0].numpy().any()
    assert not hasattr(backend, "_session")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the extra tensorrt-rtx"
)
def test_the_engine_of_tensorrt_rtx_is_built_for_the_gpu_at_hand(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real library; the GPU is made up."""
    found = FakeGpu()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", found.module())
    (plan,) = with_plan(tiny).plans
    assert plan.compute_capabilities == ("8.9",)
    assert (tiny.folder / plan.file).stat().st_size > 1000
    found.capability = (9, 0)
    with pytest.raises(ed.RequestError, match=r"builds nothing for compute capability '9\.0'"):
        with_plan(tiny)


def test_tensorrt_rtx_runs_the_engine_that_was_built_for_it(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt("tensorrt_rtx", FakeGpu(), "1.7.1")
    install(fake, monkeypatch)

    def building(trt: Any, graph: Path, capabilities: tuple[str, ...]) -> Plan:
        return Plan(memoryview(fake.plan(graph, capabilities)))

    monkeypatch.setattr(plans, "build_plan", building)
    monkeypatch.setattr(tensorrt_library.Library, "is_installed", True)
    subject = replace(tiny, spec=msgspec.structs.replace(tiny.spec, file="unet/of-rtx.onnx"))
    (tiny.folder / subject.spec.file).write_bytes(tiny.path.read_bytes())
    (rtx,) = [each for each in contenders("cpu") if each.name == "tensorrt-rtx"]
    with rtx.open(subject) as run:
        run()
    assert fake.gpu.launches == 1


class Nets(torch.nn.Module):
    """One of the networks that a process compiles one after the other, each of its own width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.model = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)  # type: ignore[no-any-return]


def test_many_pieces_compile_in_one_process_each_for_its_own_shapes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dynamo keeps what it compiled by code, refuses the ninth, and generalises the second."""
    shapes: list[Any] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **_: Any) -> Any:
        values = [each.meta["example_value"] for each in graph.graph.find_nodes(op="placeholder")]
        shapes.extend(value.shape for value in values)
        return graph.forward

    monkeypatch.setattr(gpu_contenders, "COMPILER", compiler)
    network = replace(NETWORKS[0], call=lambda model, x: model(x), other=())

    def drawn(subjects: Any, *, compiled: bool, place: str) -> Any:
        for each in subjects.values():
            traced(each, place, compiled=compiled)(torch.zeros(1, each.width))

    monkeypatch.setattr(gpu_pictures, "rivals", drawn)
    (rival,) = [each for each in gpu_pictures.picture_contenders([], "cpu") if each.name == RIVAL]
    for piece in range(4):
        subjects: Any = {}
        for part in range(3):
            width = 1 + 3 * piece + part
            subjects[str(part)] = SimpleNamespace(
                module=Nets(width).requires_grad_(False), network=network, width=width
            )
        with rival.open(subjects):
            pass
    assert len(shapes) >= 12
    assert all(isinstance(side, int) for shape in shapes for side in shape)


def test_pictures_are_made_by_every_way_that_this_runtime_has() -> None:
    names = [each.name for each in gpu_pictures.picture_contenders([], "cpu")]
    assert names == [OURS, UNCAPTURED, "tensorrt", "tensorrt-rtx", RIVAL, EAGER]


@pytest.mark.usefixtures("on_the_cpu")
def test_a_picture_piece_keeps_the_share_of_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def contender(name: str, own: list[float]) -> Any:
        def picture() -> None:
            drawn.append(name)
            own.append(len(drawn) / 1000)

        return Contender(name, lambda subjects: nullcontext(picture))

    def everybody(own: list[float]) -> Any:
        return [contender(OURS, own), contender(UNCAPTURED, [])]

    monkeypatch.setattr(gpu, "picture_contenders", everybody)
    monkeypatch.setattr(gpu, "prepared_parts", lambda piece: nullcontext({}))
    kept: list[dict[str, Any]] = []
    piece = Piece("sd15", "picture", 512)
    found = gpu.measure_piece(piece, 2, lambda what: None, kept.append)
    ours = [turn for turn, name in enumerate(drawn, 1) if name == OURS][-2:]
    assert found["own_share"] == [turn / 1000 for turn in ours]
    assert [list(each["samples_ms"]) for each in kept] == [[OURS], [OURS, UNCAPTURED]]


@pytest.mark.usefixtures("on_the_cpu")
def test_both_sides_make_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that only pass numbers on: what is tested is the way between them."""
    shares: list[float] = []
    text = np.zeros((1, 77), np.int64)
    spec = next(iter(ed.Bundle.open().manifest.components["unet"].graphs))
    subjects: Any = {
        "text_encoder": FakeSubject(lambda model, ids: (torch.zeros(1, 77, 8),), spec, text),
        "unet": FakeSubject(lambda model, sample, moment, context: 0 * sample, spec, text),
        "vae_decoder": FakeSubject(lambda model, x: x.repeat(1, 1, 8, 8)[:, :3], spec, text),
    }
    theirs = gpu_pictures.rivals(subjects, compiled=False, place="cpu", steps=2)()
    assert (theirs.dtype, theirs.shape) == (np.uint8, (1, 3, 128, 128))  # type: ignore[attr-defined]
    bundle = ed.Bundle.open()
    with ed.Pipeline.open(device="cpu") as pipe:
        engines: dict[str, Engine] = {
            "text_encoder": pipe.engine("text_encoder"),
            "unet": pipe.engine("unet", 2, (128, 128)),
            "vae_decoder": pipe.engine("vae_decoder", 1, (128, 128)),
        }
        length = bundle.manifest.tokenizer.length
        subjects["text_encoder"].inputs["input_ids"] = np.zeros((1, length), np.int64)
        monkeypatch.setattr(gpu_pictures.np, "float16", np.float32)  # the demo's decoder takes it
        ours = gpu_pictures.ours(subjects, engines, shares, steps=2)()
    assert ours.shape == (1, 128, 128, 3)  # type: ignore[attr-defined]
    assert len(shares) == 1
    assert 0 < shares[0] < 1


class FakeSubject:
    """Stands for a network: a call, and the demo's UNet for shapes."""

    def __init__(self, call: Any, spec: Any, ids: Any) -> None:
        self.module = torch.nn.Identity()
        self.network = replace(NETWORKS[0], call=call, other=())
        self.spec, self.inputs = spec, {"input_ids": ids}
        self.piece = gpu.Piece("sd15", "picture", 128)


def test_a_run_goes_on_where_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "require_cuda", lambda: A_GPU)
    monkeypatch.setattr(gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(
        gpu, "measure_piece", lambda piece, *rest: fake_piece(ours=[9.0], rival=[10.0])
    )
    path = tmp_path / "gpu.json"
    for left in ("2, sd15/unet/512/4", ""):
        gpu.main(["sd15/unet/512"], json=path, seconds=-1.0 if left else 1e9)
        report = read_report(path, [gpu.SCHEMA]) if path.exists() else {"pieces": {}}
        assert len(report["pieces"]) == (0 if left else 5)
    monkeypatch.setattr(gpu, "measure_piece", lambda *rest, **more: pytest.fail("again"))
    gpu.main(["sd15/unet/512"], json=path)
    assert json.loads(path.read_text())["gpu"]["name"] == A_GPU.name


def test_the_tables_say_times_ratios_and_shares() -> None:
    piece = fake_piece(ours=[9.0] * 12, rival=[10.0] * 12, eager=[30.0] * 12)
    report = report_of(step=piece)
    shown = pieces_table(report)
    assert "| `sd15/unet/512/1` | cuda, captured | 9.00 | 0.90 (0.90 to 0.90) | 19% |" in shown
    assert "| torch.compile | 10.00 | 1.00 (1.00 to 1.00) | 17% | 2,048 | 100.0 |" in shown
    assert "absent: DeviceError: it is not installed" in shown
    assert best_ms(piece) == pytest.approx(1.36e12 / 1.1e12 * 1.4)
    assert "| `sd15/unet/512/1` | 786 | 4,000 |" in ceilings_table(report)


def test_the_bars_are_met_missed_or_not_measured() -> None:
    step = fake_piece(ours=[11.0] * 3, rival=[12.0] * 3, bare=[10.89] * 3)
    shown = bars(report_of(step=step))
    assert "| guidance step over torch.compile | 1 | 0.917 | met |" in shown
    assert "| guidance step, ms | 10 ms | 11 ms | missed |" in shown
    assert "| picture of 50 steps, ms | 600 ms | not measured |" in shown
    assert "| own share of a step | 0.03 | not measured |" in shown
    picture = fake_piece(ours=[550.0] * 3) | {"own_share": [0.01]}
    shown = bars(report_of(step=step, picture=picture))
    assert "| own share of a step | 0.03 | 0.0199 | met |" in shown
    shown = bars(report_of(step=step | {"complete": False}))
    assert "| guidance step, ms | 10 ms | not measured |" in shown


def test_bars_are_judged_on_their_own_gpu_only() -> None:
    step = fake_piece(ours=[9.0] * 3, rival=[12.0] * 3)
    assert "| bar, on an H200 |" in bars(report_of(step=step))
    assert "| 9 ms | met |" in bars(report_of(step=step))
    other = report_of(step=step) | {"gpu": {"name": "NVIDIA H100 80GB HBM3"}}
    assert "| 9 ms | not judged: measured on NVIDIA H100 80GB HBM3 |" in bars(other)


def test_the_tables_begin_with_the_gpu_and_its_libraries() -> None:
    first = tables(report_of(step=fake_piece(ours=[9.0]))).splitlines()[0]
    assert first == (
        "NVIDIA H200: compute capability 9.0, driver 580.65.06, onnxruntime-gpu 1.31.1, "
        "PyTorch 2.13.0"
    )


def test_a_piece_that_was_cut_off_is_shown_as_that() -> None:
    piece = fake_piece(ours=[9.0]) | {"complete": False}
    assert "| `sd15/unet/512/1`, not complete | cuda, captured |" in pieces_table(
        report_of(step=piece)
    )


def test_the_layout_has_every_row_and_no_figure() -> None:
    """docs/cuda.md shows it; ``python benchmarks/tables.py`` puts it there."""
    shown = layout()
    names = {each.name for each in contenders()}
    assert names == {name for name in names if f"| {name} | " in shown}
    cells = [cell for row in shown.splitlines() for cell in row.split(" | ")[2:]]
    allowed = ("ms", "times", "of the", "MiB", "steps/s", "GB/s", "copy", "absent", "10 ms", "600")
    for cell in cells:
        assert not any(letter.isdigit() for letter in cell) or cell.startswith(allowed), cell


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": {"name": "NVIDIA H200"}}, "name was NVIDIA H200, is NVIDIA Pretend 4090"),
        ({"torch": "1.0"}, "torch was 1.0, is "),
        ({"machine": {"libraries": {"numpy": "0"}}}, "numpy was 0, is "),
    ],
)
def test_a_report_of_another_gpu_or_library_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(gpu, "require_cuda", lambda: A_GPU)
    path = tmp_path / "gpu.json"
    report = gpu.begun_report(path)
    write_report(path, report)
    assert gpu.begun_report(path)["started"] == report["started"]
    changed = json.loads(path.read_text())
    for key, value in change.items():
        changed[key] = changed[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(changed))
    with pytest.raises(ed.RequestError, match=f"was begun with another GPU or .*{said}.* --json"):
        gpu.begun_report(path)
