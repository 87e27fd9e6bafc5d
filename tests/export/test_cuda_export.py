"""``--target cuda``: a bundle with graphs for the CUDA provider beside the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from edgediffusion import Bundle
from edgediffusion.errors import DeviceError, ParityError
from edgediffusion.golden import read_tensors, stored
from edgediffusion.manifest import Manifest
from edgediffusion.manifest_file import read_manifest
from edgediffusion_export import cuda_proof
from edgediffusion_export.cuda_proof import prove_fused, written_out
from edgediffusion_export.options import ExportOptions
from tests.bundles import export_tiny
from tests.export.cuda_kernels import without_kernel


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in fp16, for the CPU and for CUDA."""
    folder = tmp_path_factory.mktemp("cuda") / "tiny"
    options: dict[str, Any] = {"targets": ("cpu", "cuda"), "precision": "fp16", "batches": (2,)}
    return export_tiny(checkpoint, folder, **options)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_each_graph_that_gains_has_a_file_for_cuda(manifest: Manifest) -> None:
    for name, component in manifest.components.items():
        for graph in component.graphs:
            assert set(graph.devices) == (set() if name == "vae_tiny_decoder" else {"cuda"})
            for own in graph.devices.values():
                assert own.file == graph.file.replace(".onnx", ".cuda.onnx")
                assert own.file in manifest.files
    (unet,) = manifest.components["unet"].graphs
    assert unet.devices["cuda"].operators == {
        "BiasAdd": 4,
        "GroupNorm": 6,
        "MultiHeadAttention": 8,
        "SkipGroupNorm": 15,
        "SkipLayerNormalization": 8,
    }


def test_a_graph_for_cuda_is_proven_against_pytorch(manifest: Manifest) -> None:
    for component in manifest.components.values():
        for graph in component.graphs:
            for own in graph.devices.values():
                assert 0 < own.parity.l2 <= own.parity.gate == manifest.gates["fp16"]
                assert own.parity.cases == graph.parity.cases


def test_onnx_runtime_lists_a_cuda_kernel_for_every_node(bundle: Path, manifest: Manifest) -> None:
    """A GPU would say it for certain; the list is what can be asked without one."""
    for component in manifest.components.values():
        for graph in component.graphs:
            own = graph.devices.get("cuda", graph)
            model = onnx.load(bundle / own.file, load_external_data=False)
            assert list(without_kernel(model)) == [], own.file
    for graph in manifest.components["text_encoder"].graphs:
        plain = onnx.load(bundle / graph.file, load_external_data=False)
        assert list(without_kernel(plain)) == ["ArgMax(INT32)"], "this is why they are rewritten"


def test_both_graphs_share_the_weights(bundle: Path, manifest: Manifest) -> None:
    (unet,) = manifest.components["unet"].graphs
    names = []
    for file in (unet.file, unet.devices["cuda"].file):
        model = onnx.load(bundle / file, load_external_data=False)
        external = [t for t in model.graph.initializer if t.external_data]
        locations = {e.value for t in external for e in t.external_data if e.key == "location"}
        assert locations == {"weights.safetensors"}
        names.append({e.value for t in external for e in t.external_data if e.key == "offset"})
    assert names[0] == names[1]


def test_the_bundle_holds_what_the_manifest_lists_and_nothing_else(
    bundle: Path, manifest: Manifest
) -> None:
    found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert found == {*manifest.files, "manifest.json"}


def test_another_graph_for_cuda_is_another_content(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (unet,) = opened.manifest.components["unet"].graphs
    before = opened.content(unet)
    file = unet.devices["cuda"].file
    opened.manifest.files[file] = opened.manifest.files[unet.file]
    assert opened.content(unet) != before


def test_a_graph_that_computes_something_else_is_refused(
    bundle: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Bundle.open(bundle)
    (graph,) = manifest.components["vae_decoder"].graphs
    golden = read_tensors(opened.file(manifest.components["vae_decoder"].golden))
    wanted: Any = [
        {name: stored(recipe, golden) for name, recipe in case.outputs.items()}
        for case in graph.golden
    ]

    def wrong(fused: ir.Model) -> ir.Model:
        model = written_out(fused)
        for node in model.graph:
            if node.op_type == "InstanceNormalization":
                node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 10.0)
        return model

    monkeypatch.setattr(cuda_proof, "written_out", wrong)
    file = graph.devices["cuda"].file
    with pytest.raises(ParityError, match=r"vae_decoder/64x64\.b1\.cuda\.proof\.onnx: sample"):
        prove_fused(graph, file, bundle, graph.golden, golden, wanted)
    assert not list(bundle.rglob("*.proof.onnx"))


def test_an_unknown_target_names_those_that_there_are(tmp_path: Path) -> None:
    make: Callable[..., ExportOptions] = ExportOptions
    with pytest.raises(DeviceError, match="unknown target 'cud': did you mean cuda"):
        make(checkpoint="x", output=tmp_path, targets=("cud",))
