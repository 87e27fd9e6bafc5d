"""benchmarks/gpu.py without a GPU: its plan, its networks, its tables, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import edgediffusion as ed
from benchmarks import gpu, gpu_pictures
from benchmarks.gpu_contenders import Contender, contenders
from benchmarks.gpu_graphs import Subject, prepared
from benchmarks.gpu_pieces import OURS, RIVAL, Piece, all_pieces, chosen_pieces
from benchmarks.gpu_tables import bars, best_ms, ceilings_table, pieces_table
from benchmarks.reports import read_report
from edgediffusion import engine_cuda
from edgediffusion.engine import Engine, open_engine
from edgediffusion_export.graphs import NETWORKS
from tests.checkpoints import TEXT_WIDTH, TINY_UNET
from tests.runtime.nvidia import A_GPU

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


def fake_piece(**samples: list[float]) -> dict[str, Any]:
    names = {"ours": OURS, "rival": RIVAL, "eager": "torch eager"}
    times = {names[name]: values for name, values in samples.items()}
    return {
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
    done = {"sd15/unet/512/1": {}}
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
    assert [t.shape for t in spec.inputs] == [(2, 4, 8, 8), (1,), (2, 77, TEXT_WIDTH)]
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
    monkeypatch.setattr(gpu, "free_memory", lambda: 0)
    top = gpu.Ceiling(1e6, lambda: None)
    monkeypatch.setattr(gpu, "gpu_ceilings", lambda: {"fp16 product": top, "copy on the GPU": top})


@pytest.mark.usefixtures("on_the_cpu")
def test_a_piece_is_measured_and_whoever_fails_is_a_row(
    tiny: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(subject: Subject) -> Any:
        raise RuntimeError("no such kernel\nand more")

    taking_part = [
        each for each in contenders("cpu") if each.name not in (OURS, RIVAL, "cuda, not captured")
    ]
    assert {"cuda, captured, plain graph", "torch eager"} <= {each.name for each in taking_part}
    field = [*taking_part, Contender("broken", fail)]
    monkeypatch.setattr(gpu, "contenders", lambda: field)
    monkeypatch.setattr(gpu, "prepared", lambda piece: nullcontext(tiny))
    found = gpu.measure_piece(TINY, 2, lambda what: None)
    assert found["absent"]["broken"] == "RuntimeError: no such kernel"
    assert {len(samples) for samples in found["samples_ms"].values()} == {2}
    assert found["flops"] > 1e6
    assert found["operators"]["GroupNorm"] == 6


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
        gpu, "measure_piece", lambda piece, **rest: fake_piece(ours=[9.0], rival=[10.0])
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
    report = {"pieces": {"sd15/unet/512/1": piece}}
    shown = pieces_table(report)
    assert "| `sd15/unet/512/1` | cuda, captured | 9.00 | 0.90 (0.90 to 0.90) | 19% |" in shown
    assert "| torch.compile | 10.00 | 1.00 (1.00 to 1.00) | 17% | 2,048 | 100.0 |" in shown
    assert "absent: DeviceError: it is not installed" in shown
    assert best_ms(piece) == pytest.approx(1.36e12 / 1.1e12 * 1.4)
    assert "| `sd15/unet/512/1` | 786 | 4,000 |" in ceilings_table(report)


def test_the_bars_are_met_missed_or_not_measured() -> None:
    step = fake_piece(ours=[11.0] * 3, rival=[12.0] * 3)
    shown = bars({"pieces": {"sd15/unet/512/1": step}})
    assert "| guidance step over torch.compile | 1 | 0.917 | met |" in shown
    assert "| guidance step, ms | 10 ms | 11 ms | missed |" in shown
    assert "| picture of 50 steps, ms | 600 ms | not measured |" in shown
    picture = fake_piece(ours=[550.0] * 3) | {"own_share": [0.02]}
    shown = bars({"pieces": {"sd15/picture/512/1": picture}})
    assert "| own share of a step | 0.03 | 0.02 | met |" in shown
