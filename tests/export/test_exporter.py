from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from edgediffusion import Bundle, __version__, verify
from edgediffusion.cli import main
from edgediffusion.errors import CheckpointError, ParityError, RequestError
from edgediffusion.manifest import GATES, Manifest
from edgediffusion.manifest_file import read_manifest
from edgediffusion_export import component
from edgediffusion_export.exporter import export_checkpoint
from edgediffusion_export.graphs import NETWORKS
from edgediffusion_export.options import ExportOptions
from tests.checkpoints import write_tiny_checkpoint

Export = Callable[..., Path]
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


@pytest.fixture
def just_a_part(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let exports stop after a network: the rest was seen to work elsewhere."""

    def stop_after(name: str) -> None:
        original = component.export_component

        def export(job: Any, network: Any) -> Any:
            made = original(job, network)
            if network.name == name:
                raise StopExport(made)
            return made

        monkeypatch.setattr("edgediffusion_export.exporter.export_component", export)

    return stop_after


class StopExport(Exception):
    """Carries the ComponentSpec that was made last."""


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_bundle_says_what_it_is(manifest: Manifest, checkpoint: Path) -> None:
    assert (manifest.name, manifest.family, manifest.license) == (
        "tiny",
        "stable-diffusion",
        "unknown",
    )
    assert (manifest.precision, manifest.store) == ("fp32", "fp32")
    assert manifest.created == "2023-11-14T22:13:20Z"
    assert manifest.tools["edgediffusion"] == __version__
    assert manifest.tools["torch"] == metadata.version("torch")
    assert manifest.sizes == ((64, 64),)
    assert manifest.gates == GATES
    assert manifest.source.checkpoint == "tiny"
    assert len(manifest.source.sha256) == 4
    scheduler = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    assert manifest.scheduler == scheduler


def test_every_component_is_there(manifest: Manifest) -> None:
    graphs = {name: len(spec.graphs) for name, spec in manifest.components.items()}
    assert graphs == {
        "text_encoder": 2,
        "unet": 2,
        "vae_decoder": 1,
        "vae_encoder": 1,
        "vae_tiny_decoder": 1,
    }


def test_every_graph_passed_its_gate(manifest: Manifest) -> None:
    for spec in manifest.components.values():
        for graph in spec.graphs:
            assert 0 < graph.parity.l2 <= graph.parity.gate == 1e-4
            assert graph.parity.cases == len(graph.golden) >= 2
            assert graph.note is None


def test_the_bundle_verifies(tiny_bundle: Path) -> None:
    checks = list(verify(Bundle.open(tiny_bundle)))
    assert [check.subject for check in checks if not check.passed] == []
    # for CPUs that compute in bf16: the UNet's two graphs, with AMX and in general, and those of
    # the VAE, whose attention is narrower than AMX's tiles
    forms = 2 * 2 + 2
    assert sum(check.subject.endswith(".onnx") for check in checks) == 2 * 7 + forms


def test_golden_vectors_are_small(tiny_bundle: Path) -> None:
    for path in tiny_bundle.glob("*/golden.safetensors"):
        assert path.stat().st_size < 2_000_000


def test_every_parameter_is_stored_and_traced(
    tiny_bundle: Path, manifest: Manifest, checkpoint: Path
) -> None:
    source = load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    spec = manifest.components["unet"]
    stored = load_file(tiny_bundle / spec.weights)
    assert set(stored) == set(spec.tensors)
    assert spec.parameters == sum(array.size for array in source.values())
    for name, origin in spec.tensors.items():
        if origin.source is not None:
            original = source[origin.source]
            original = original.T if "transpose" in origin.transforms else original
            assert np.array_equal(stored[name].reshape(-1), original.reshape(-1)), name
    # what is not stored under its own name has the bytes of one that is
    for graph in spec.graphs:
        proto = onnx.load(tiny_bundle / graph.file, load_external_data=False).graph
        assert set(source) <= {tensor.name for tensor in proto.initializer}


def test_both_batches_share_one_file(tiny_bundle: Path, manifest: Manifest) -> None:
    spec = manifest.components["unet"]
    size = (tiny_bundle / spec.weights).stat().st_size
    assert size < 4 * spec.parameters * 1.1 + 3 * 16_384
    for graph in spec.graphs:
        assert (tiny_bundle / graph.file).stat().st_size < size


def test_previews_follow_the_decoder(tiny_bundle: Path, manifest: Manifest) -> None:
    latent = manifest.latent
    assert (latent.channels, latent.downsampling) == (4, 8)
    assert (latent.scaling_factor, latent.shift_factor) == (0.18215, 0.0)
    assert np.isfinite(latent.rgb).all()
    assert np.abs(latent.rgb).max() > 0


def test_the_same_checkpoint_gives_the_same_bytes(
    checkpoint: Path, tiny_bundle: Path, tmp_path: Path, exporting: Export
) -> None:
    again = exporting(checkpoint, tmp_path / "again")
    first, second = all_files(tiny_bundle), all_files(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_fp16_weights_in_an_fp32_bundle_are_half_as_large(
    checkpoint: Path, tiny_bundle: Path, tmp_path: Path, just_a_part: Any, exporting: Export
) -> None:
    just_a_part("unet")
    with pytest.raises(StopExport) as stop:
        exporting(checkpoint, tmp_path / "half", store="fp16", batches=(1,))
    spec = stop.value.args[0]
    (graph,) = spec.graphs
    assert graph.precision == "fp32"
    assert graph.parity.l2 <= 1e-4
    assert "weights rounded to float16 for storage" in graph.note
    transforms = {name: tensor.transforms for name, tensor in spec.tensors.items()}
    assert "cast:float16" in transforms["conv_in.weight"]
    assert transforms["conv_in.bias"] == ()


def test_float16_sources_lose_nothing(tmp_path: Path, just_a_part: Any, exporting: Export) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", dtype=torch.float16)
    just_a_part("text_encoder")
    with pytest.raises(StopExport) as stop:
        exporting(source, tmp_path / "half", store="source")
    spec = stop.value.args[0]
    assert spec.graphs[0].note is None
    assert spec.graphs[0].parity.l2 <= 1e-4
    matrices = [tensor for name, tensor in spec.tensors.items() if name.endswith("mlp.fc1.weight")]
    assert matrices
    assert all("cast:float16" not in tensor.transforms for tensor in matrices)


def test_fp16_keeps_what_overflows_of_a_decoder_in_float32(
    broken: Path, tmp_path: Path, exporting: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_torch(broken / VAE_WEIGHTS)
    weights["decoder.conv_in.weight"] *= 3e4  # the group norms behind it hide the scale
    save_file(weights, broken / VAE_WEIGHTS)
    bundle = exporting(broken, tmp_path / "half", precision="fp16", batches=(2,))
    manifest = read_manifest(bundle)
    assert (manifest.precision, manifest.store) == ("fp16", "fp16")
    found = {name: spec.graphs[0].precision for name, spec in manifest.components.items()}
    assert set(found.values()) == {"fp16"}
    decoder = manifest.components["vae_decoder"].graphs[0]
    note = (
        r"^\d+ of 79 layers compute in float32: decoder\.conv_in reaches .* and \d+ more, float16"
    )
    assert re.match(note, str(decoder.note))
    assert decoder.parity.l2 <= decoder.parity.gate == 3e-2
    assert {tensor.dtype for tensor in (*decoder.inputs, *decoder.outputs)} == {"float16"}
    assert main(["info", str(bundle)]) == 0
    assert f"note: {decoder.file}: {decoder.note}\n" in capsys.readouterr().out
    unet = manifest.components["unet"].graphs[0]
    assert 1e-5 < unet.parity.l2 <= unet.parity.gate == 3e-2
    assert {t.name: t.dtype for t in unet.inputs}["timestep"] == "float32"
    for part in ("unet", "vae_decoder"):
        stored = load_file(bundle / part / "weights.safetensors")
        kinds = {array.dtype.name for name, array in stored.items() if "constant" not in name}
        assert kinds == {"float16"}
    assert all(check.passed for check in verify(Bundle.open(bundle)))


def test_a_failed_gate_leaves_no_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporting: Export
) -> None:
    original = component.export_graph

    def wrong(network: Any, spec: Any, module: Any, layers: Any) -> Any:
        list(module.parameters())[-1].data[5] += 0.1  # a bias of the last norm
        return original(network, spec, module, layers)

    monkeypatch.setattr(component, "export_graph", wrong)
    with pytest.raises(ParityError, match=r"text_encoder/b1\.onnx: .* No bundle was written"):
        exporting(checkpoint, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_computes_otherwise_layer_by_layer_is_refused() -> None:
    whole = {"last_hidden_state": np.ones((1, 77, 8)), "pooler_output": np.ones((1, 8))}
    layers = {"skip_states": np.ones((1, 3, 77, 8)), "pooler_output": np.ones((1, 8))}
    component.check_prompt_states(NETWORKS[0], [whole, whole], [layers])
    for name, other in (("last_hidden_state", "skip_states"), ("pooler_output", "pooler_output")):
        wrong = layers | {other: 1.01 * layers[other]}
        with pytest.raises(ParityError, match=f"layer by layer gives another {name} than the net"):
            component.check_prompt_states(NETWORKS[0], [whole, whole], [wrong])


def test_graphs_for_longer_prompts_share_the_weights(
    checkpoint: Path, tiny_bundle: Path, tmp_path: Path, just_a_part: Any, exporting: Export
) -> None:
    just_a_part("unet")
    with pytest.raises(StopExport) as stop:
        exporting(checkpoint, tmp_path / "long", chunks=2, batches=(1,))
    spec = stop.value.args[0]
    assert [graph.variant for graph in spec.graphs] == ["plain", "chunks-2"]
    assert spec.graphs[1].inputs[2].shape == (1, 154, 32)
    assert all(graph.parity.l2 <= 1e-4 for graph in spec.graphs)
    plain = read_manifest(tiny_bundle).components["unet"]
    assert spec.parameters == plain.parameters
    assert set(spec.tensors) <= set(plain.tensors)


def test_a_failed_export_keeps_the_old_bundle(
    broken: Path, tiny_bundle: Path, tmp_path: Path, exporting: Export
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "b")
    weights = load_torch(broken / "text_encoder" / "model.safetensors")
    weights = {name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()}
    save_file(weights, broken / "text_encoder" / "model.safetensors")
    with pytest.raises(CheckpointError, match="text_encoder computes NaN"):
        exporting(broken, tmp_path / "b", force=True)
    assert all_files(tmp_path / "b") == all_files(tiny_bundle)


def test_sizes_are_checked_before_anything_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(checkpoint=str(checkpoint), output=tmp_path / "b", sizes=((60, 64),))
    with pytest.raises(RequestError, match="multiples of 16 pixels, the nearest are 48x64 or 64x"):
        export_checkpoint(options)
    assert list(tmp_path.iterdir()) == []


def test_a_senseless_date_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    options = ExportOptions(checkpoint=str(checkpoint), output=tmp_path / "b")
    with pytest.raises(RequestError, match="SOURCE_DATE_EPOCH must be seconds since 1970, got 'ye"):
        export_checkpoint(options)


def test_progress_ends_where_it_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, just_a_part: Any
) -> None:
    just_a_part("text_encoder")
    heard: list[tuple[str, int, int]] = []
    options = ExportOptions(checkpoint=str(checkpoint), output=tmp_path / "b")
    with pytest.raises(StopExport):
        export_checkpoint(options, lambda *step: heard.append(step))
    assert [done for _, done, _ in heard] == [0, 1, 2, 3, 4, 5, 6]
    assert {total for *_, total in heard} == {1 + 5 * 3 + 7 * 2}
    assert heard[0][0] == "text_encoder: loading"
