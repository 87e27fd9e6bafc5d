"""Rewrites on the way from a checkpoint to a picture."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import msgspec
import onnx
import onnx_ir as ir
import pytest

import edgediffusion as ed
from edgediffusion import cpu, engine_openvino, engine_ort
from edgediffusion.bundle import verify
from edgediffusion.engine import open_engine
from edgediffusion.engine_ort import cpu_path
from edgediffusion.golden import check_graph, golden_inputs, read_tensors, relative_l2
from edgediffusion.manifest import GATES, GraphSpec, sparing
from edgediffusion_export import forms
from edgediffusion_export.options import REWRITES, ExportOptions
from edgediffusion_export.rewrites import (
    FLOAT32,
    HALVES,
    areas_for,
    attention,
    done_by,
    winograd,
)
from edgediffusion_export.rewrites.winograd import AT_EVERY_STEP, ONCE_A_PICTURE, TileAreas
from tests.bundles import export_tiny
from tests.export.rewrites.small import operators

DEVICES = [
    "cpu",
    pytest.param(
        "openvino",
        marks=pytest.mark.skipif(
            not engine_openvino.is_installed(), reason="the extra openvino is not installed"
        ),
    ),
]


@pytest.fixture(scope="module")
def rewritten(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ed.Bundle:
    """The tiny checkpoint, rewritten where it is too small to gain by it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "LEAST_CHANNELS", 8)
        areas = TileAreas(small=16, large=64)
        patch.setattr(forms, "areas_for", lambda name, halves: areas)
        patch.setattr(attention, "LEAST_TOKENS", 16)
        folder = tmp_path_factory.mktemp("rewritten") / "b"
        return ed.Bundle.open(export_tiny(checkpoint, folder, deepcache=True, batches=(1,)))


def graphs(bundle: ed.Bundle, component: str) -> tuple[GraphSpec, ...]:
    return bundle.manifest.components[component].graphs


def test_every_rewrite_has_a_name_to_ask_by() -> None:
    assert tuple(done_by(AT_EVERY_STEP)) == REWRITES
    assert {name for names in (FLOAT32, *HALVES.values()) for name in names} == set(REWRITES)
    assert ExportOptions(checkpoint="c", output=Path("b")).rewrites == REWRITES


def test_what_runs_once_a_picture_gets_less_memory_for_its_speed() -> None:
    assert areas_for("unet") == AT_EVERY_STEP
    assert areas_for("vae_decoder") == areas_for("vae_encoder") == ONCE_A_PICTURE
    for halves in (False, True):
        often, once = areas_for("unet", halves), areas_for("vae_decoder", halves)
        assert often.small < once.small
        assert often.large < once.large


def test_the_manifest_says_what_was_rewritten(rewritten: ed.Bundle) -> None:
    for component in ("unet", "vae_decoder"):
        for graph in graphs(rewritten, component):
            assert graph.fp32 is not None
            assert graph.fp32.file == graph.file.replace(".onnx", ".fp32.onnx")
            plain, fast = (ir.load(rewritten.file(f)) for f in (graph.file, graph.fp32.file))
            made = operators(fast)["Einsum"]
            assert made == graph.fp32.rewrites["winograd"] > 0
            assert operators(plain)["Einsum"] == 0
            onnx.checker.check_model(rewritten.file(graph.fp32.file), full_check=True)
    assert graphs(rewritten, "text_encoder")[0].fp32 is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("component", ["unet", "vae_decoder", "vae_encoder"])
def test_both_files_compute_the_same(
    rewritten: ed.Bundle, component: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_openvino, "computes_bf16", lambda: False)
    spec = rewritten.manifest.components[component]
    graph, tensors = spec.graphs[0], read_tensors(rewritten.file(spec.golden))
    outputs = []
    for form in (graph, msgspec.structs.replace(graph, fp32=None)):
        with open_engine(form, rewritten.path, device) as engine:
            outputs.append(engine(**golden_inputs(graph.golden[0], graph, tensors)))
    fast, plain = outputs
    assert all(0 < relative_l2(fast[name], plain[name]) < 2e-5 for name in plain)


def test_other_arithmetic_takes_the_plain_file(rewritten: ed.Bundle) -> None:
    graph = graphs(rewritten, "unet")[0]
    path = rewritten.file(graph.file)
    assert cpu_path(graph, path, "int8") == path
    assert cpu_path(graph, path, "fp32") == rewritten.file("unet/64x64.b1.fp32.onnx")


@pytest.mark.parametrize(
    ("unit", "file"), [("avx512", "b1.bf16-avx512"), ("amx", "b1.bf16-amx"), (None, "b1.bf16-any")]
)
def test_a_cpu_that_computes_in_bf16_takes_the_form_for_its_unit(
    rewritten: ed.Bundle, monkeypatch: pytest.MonkeyPatch, unit: str | None, file: str
) -> None:
    monkeypatch.setattr(engine_ort, "bf16_unit", lambda: unit)
    graph = graphs(rewritten, "unet")[0]
    assert cpu_path(graph, rewritten.file(graph.file), "bf16").stem == f"64x64.{file}"
    alone = msgspec.structs.replace(graph, bf16={})
    assert cpu_path(alone, rewritten.file(graph.file), "bf16").name == "64x64.b1.onnx"
    sparing_path = cpu_path(sparing(graph), rewritten.file(graph.file), "bf16")
    assert sparing_path.stem == "64x64.b1.bf16-any"


def test_the_forms_for_bf16_say_what_was_rewritten(rewritten: ed.Bundle) -> None:
    for graph in graphs(rewritten, "unet"):
        plain, fast = graph.bf16["any"], graph.bf16["avx512"]
        assert plain.rewrites == {"moments": 1}
        tiled = graph.bf16["amx"]
        assert tiled.rewrites.keys() == {"moments", "heads", "gates"}
        assert tiled.parity is None
        assert plain.parity is None
        assert fast.rewrites["winograd"] > 0
        assert fast.parity is not None
        assert 1e-4 < fast.parity.l2 <= fast.parity.gate == GATES["bf16"] / 2
        assert [tensor.name for tensor in fast.hidden] == ["moment_features"]
        assert fast.hidden == plain.hidden
    assert graphs(rewritten, "text_encoder")[0].bf16 == {}
    assert not {"any"} & graphs(rewritten, "vae_encoder")[0].bf16.keys()
    assert not list(rewritten.path.rglob("*stand-in*"))


def test_a_form_that_is_too_coarse_is_left_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 8)
    monkeypatch.setattr(forms, "areas_for", lambda name, halves: TileAreas(small=16, large=64))
    monkeypatch.setattr(forms, "HALF_OF_THE_GATE", 1e-6)
    bundle = ed.Bundle.open(export_tiny(checkpoint, tmp_path / "b", batches=(1,)))
    assert graphs(bundle, "unet")[0].bf16.keys() == {"any", "amx"}
    assert not list(bundle.path.rglob("*avx512*"))


@pytest.mark.skipif(not engine_openvino.is_installed(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("unit", ["any", "amx", "avx512"])
def test_bf16_keeps_the_moment_in_float32(
    rewritten: ed.Bundle, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, the error grows with the timestep: a number near 1000 is rounded to fours."""
    if "avx512_bf16" not in cpu.read_cpu().flags:
        pytest.skip("this CPU has no instruction for bf16")
    monkeypatch.setattr(engine_openvino, "computes_bf16", lambda: True)
    spec = rewritten.manifest.components["unet"]
    graph, tensors = spec.graphs[0], read_tensors(rewritten.file(spec.golden))
    form = graph.bf16[unit]
    errors = []
    for bf16 in ({"any": form}, {}):
        with open_engine(
            msgspec.structs.replace(graph, bf16=bf16), rewritten.path, "openvino"
        ) as engine:
            assert engine.arithmetic == "bf16"
            errors.append(check_graph(engine, tensors))
    assert errors[0] <= GATES["bf16"]
    assert errors[0] < errors[1]


def test_the_weights_are_the_parameters_alone(rewritten: ed.Bundle, tiny_bundle: Path) -> None:
    plain = ed.Bundle.open(tiny_bundle)
    for name, component in rewritten.manifest.components.items():
        other = plain.manifest.components[name]
        assert not any(graph.fp32 for graph in other.graphs)
        assert component.tensors == other.tensors
        listed = rewritten.manifest.files[component.weights]
        assert listed == plain.manifest.files[other.weights]


def test_a_rewritten_bundle_proves_itself_and_makes_pictures(rewritten: ed.Bundle) -> None:
    checks = list(verify(rewritten, device="cpu"))
    assert all(check.passed for check in checks), checks
    assert all(graph.parity.l2 <= 1e-4 for graph in graphs(rewritten, "unet"))
    with ed.Pipeline.open(rewritten.path, device="cpu") as pipe:
        request = ed.Request(prompt="red circle", steps=3, seed=0, deepcache_interval=2)
        assert pipe.generate(request).images.shape == (1, 64, 64, 3)


def test_a_changed_rewritten_file_is_found(rewritten: ed.Bundle, tmp_path: Path) -> None:
    copied = Path(copytree(rewritten.path, tmp_path / "b"))
    form = graphs(rewritten, "unet")[0].fp32
    assert form is not None
    fast = form.file
    (copied / fast).write_bytes((copied / fast).read_bytes()[:-1] + b"\0")
    with pytest.raises(ed.IntegrityError, match=r"b1\.fp32\.onnx has sha256"):
        ed.Bundle.open(copied)


def test_both_files_count_for_what_is_cached(rewritten: ed.Bundle) -> None:
    graph = graphs(rewritten, "unet")[0]
    alone = msgspec.structs.replace(graph, fp32=None)
    assert rewritten.content(graph) != rewritten.content(alone)
