"""A decoder that float16 cannot hold, with the layers that overflow in float32.

ONNX's reference evaluator rounds to float16 after every operator, as a GPU does; ONNX Runtime's CPU
provider computes a half graph in float32 from end to end, and would not see an overflow.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from edgediffusion.golden import relative_l2
from edgediffusion.manifest import GATES, STAYS_FP32, ComponentSpec, GraphSpec, TensorSpec
from edgediffusion_export import component
from edgediffusion_export.bundle import Staging
from edgediffusion_export.component import export_component
from edgediffusion_export.graphs import NETWORKS, UNPROVEN
from edgediffusion_export.job import Job
from edgediffusion_export.mixed import compute_in_float32
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.options import ExportOptions
from edgediffusion_export.precision import Overflow, find_overflow
from edgediffusion_export.source import open_checkpoint
from tests.checkpoints import TINY_VAE
from tests.export.cuda_kernels import without_kernel

VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
SPEC = GraphSpec(
    file="vae_decoder/64x64.b1.onnx",
    batch=1,
    precision="fp16",
    inputs=(TensorSpec("latent_sample", "float16", (1, 4, 8, 8)),),
    outputs=(TensorSpec("sample", "float16", (1, 3, 64, 64)),),
    parity=UNPROVEN,
    golden=(),
    size=(64, 64),
)
(DECODER,) = (network for network in NETWORKS if network.name == "vae_decoder")


def grow(weights: dict[str, torch.Tensor]) -> None:
    """Let the residual stream pass float16's end in the second of four blocks, as SDXL's does.

    Norms hide the scale from what branches off.
    """
    weight = weights["decoder.up_blocks.1.resnets.1.conv2.weight"]
    weight *= 3e4 / weight.abs().max()


@pytest.fixture(scope="module")
def decoder() -> Any:
    """diffusers' tiny VAE with random weights, in float32, overflowing."""
    torch.manual_seed(0)
    module = diffusers.AutoencoderKL.from_config(TINY_VAE.config).eval().requires_grad_(False)
    grow(dict(module.named_parameters()))
    return module


@pytest.fixture(scope="module")
def latents() -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=(1, 4, 8, 8)).astype(np.float16)


@pytest.fixture(scope="module")
def overflow(decoder: Any, latents: NDArray[np.float16]) -> Overflow:
    def run() -> float:
        decoder.decode(torch.from_numpy(latents).float())
        return 0.0

    found = find_overflow(decoder, run)
    assert found is not None
    return found


def half_graph(decoder: Any, layers: tuple[str, ...]) -> onnx.ModelProto:
    model = export_graph(DECODER, SPEC, copy.deepcopy(decoder).half(), layers)
    proto: onnx.ModelProto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def evaluated(graph: onnx.ModelProto, latents: NDArray[np.float16]) -> NDArray[np.float16]:
    with np.errstate(all="ignore"):
        (sample,) = ReferenceEvaluator(graph).run(None, {"latent_sample": latents})
    assert sample.dtype == np.float16
    return np.asarray(sample)


def test_the_overflow_is_in_the_residual_stream(overflow: Overflow) -> None:
    blocks = ("1.resnets.1", "1.upsamplers.0", "2.resnets.0", "2.resnets.1", "3.resnets.1")
    assert {f"decoder.up_blocks.{block}" for block in blocks} < set(overflow.peaks)
    assert {name for name in overflow.peaks if name.endswith((".conv1", ".conv2"))} == {
        "decoder.up_blocks.1.resnets.1.conv2"
    }
    assert len(overflow.peaks) < overflow.layers / 4
    assert overflow.left > 0.7


def test_a_half_graph_overflows_and_a_mixed_one_does_not(
    decoder: Any, overflow: Overflow, latents: NDArray[np.float16]
) -> None:
    wanted = decoder.decode(torch.from_numpy(latents).float()).sample.numpy()
    half, mixed = half_graph(decoder, ()), half_graph(decoder, tuple(overflow.peaks))
    assert not np.isfinite(evaluated(half, latents)).all()
    assert relative_l2(evaluated(mixed, latents), wanted) < GATES["fp16"] / 5
    assert mixed.graph.input == half.graph.input
    assert mixed.graph.output == half.graph.output
    assert kinds(mixed)["Conv", "FLOAT16"] > 20
    in_float32 = [name for name in overflow.peaks if "conv" in name and "norm" not in name]
    assert kinds(mixed)["Conv", "FLOAT"] == len(in_float32)
    assert sum(kinds(mixed).values()) < sum(kinds(half).values()) + 2 * len(overflow.peaks)


def kinds(graph: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """How many nodes of each operator there are in each type."""
    nodes = ir.serde.deserialize_model(graph).graph
    return Counter((node.op_type, str(node.outputs[0].dtype)) for node in nodes)


# --- single nodes ---------------------------------------------------------------------------------

NODES = """
<ir_version: 10, opset_import: ["" : 20]>
graph (float16[2, 2] x) => (float16[2, 2] y) <float16[2, 2] w = {1, 2, 3, 4}> {
    a = MatMul (x, w)
    b = MatMul (a, w)
    c = Identity (b)
    d = Cast <to = 1> (c)
    e = Cast <to = 10> (d)
    f = Constant <value = float16[2, 2] {1, 1, 1, 1}> ()
    y = Add (e, f)
}
"""


def small(layers: set[str]) -> dict[str, list[tuple[str, str]]]:
    """The inputs of each node, with their types, after ``layers`` became float32."""
    model = ir.from_onnx_text(NODES)
    for node, layer in zip(model.graph, ["one", "two@1", None, "up", "down", "", ""], strict=True):
        result = node.outputs[0]
        half = ir.DataType.FLOAT if result.name == "d" else ir.DataType.FLOAT16
        result.type, result.shape = ir.TensorType(half), ir.Shape([2, 2])
        if layer is not None:
            scopes = ["", *([f"model.{layer}"] if layer else []), result.name]
            node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(scopes)
    compute_in_float32(model, layers, "model.")
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    return {
        node.outputs[0].name: [(value.name, str(value.dtype)) for value in node.inputs]
        for node in model.graph
    }


def test_nothing_changes_without_layers() -> None:
    assert list(small(set())) == list("abcdefy")


def test_a_weight_of_both_kinds_of_layers_is_there_in_both() -> None:
    nodes = small({"two"})
    assert nodes["a"] == [("x", "FLOAT16"), ("w", "FLOAT16")]
    assert nodes["b"] == [("a.float32", "FLOAT"), ("w.float32", "FLOAT")]
    assert small({"one", "two"})["b"] == [("a", "FLOAT"), ("w", "FLOAT")]


def test_a_node_of_the_optimizer_goes_with_what_it_takes() -> None:
    assert small({"two"})["c"] == [("b", "FLOAT")]
    assert small({"one"})["c"] == [("b", "FLOAT16")]


def test_a_cast_of_the_network_takes_the_float32_as_it_is() -> None:
    nodes = small({"two"})
    assert nodes["d"] == [("c", "FLOAT")]
    assert "c.float16" not in nodes


def test_a_cast_to_half_inside_a_layer_goes_to_float32() -> None:
    nodes = small({"down", ""})
    assert nodes["e"] == [("d", "FLOAT")]
    assert nodes["y.float16"] == [("e", "FLOAT"), ("f.float32", "FLOAT")]


def test_the_output_of_the_graph_stays_half() -> None:
    assert small({""})["y"] == [("y.float16", "FLOAT")]


class Shared(torch.nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(8, 8)
        self.again = torch.nn.ModuleList([self.decoder])

    def decode(self, x: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (self.again[0](self.decoder(x)),)


def test_a_shared_layer_is_found_by_all_its_names() -> None:
    module = Shared().eval().half()
    model = export_graph(DECODER, SPEC, module.requires_grad_(False), ("decoder",))
    computing = [node for node in model.graph if node.op_type != "Cast"]
    assert {str(node.outputs[0].dtype) for node in computing} == {"FLOAT"}


# --- a whole component ----------------------------------------------------------------------------


def exported(
    checkpoint: Path, folder: Path, heard: list[tuple[str, int, int]] | None = None, **options: Any
) -> ComponentSpec:
    """Export the decoder of an overflowing checkpoint in fp16, and nothing else."""
    settings = ExportOptions(checkpoint=str(checkpoint), output=folder, precision="fp16", **options)
    folder.mkdir()
    report = None if heard is None else lambda *step: heard.append(step)
    job = Job(settings, open_checkpoint(str(checkpoint), None), Staging(folder), report)
    return export_component(job, DECODER)


@pytest.fixture
def overflowing(broken: Path) -> Path:
    """A checkpoint whose decoder float16 cannot hold."""
    weights = load_torch(broken / VAE_WEIGHTS)
    grow(weights)
    save_file(weights, broken / VAE_WEIGHTS)
    return broken


def test_graphs_of_two_sizes_and_for_cuda_share_the_half_weights(
    overflowing: Path, tmp_path: Path
) -> None:
    made = exported(
        overflowing, tmp_path / "b", targets=("cpu", "cuda"), sizes=((64, 64), (128, 64))
    )
    for graph in made.graphs:
        assert graph.precision == "fp16"
        assert " layers compute in float32: decoder.up_blocks.1.resnets.1.conv2 reaches" in str(
            graph.note
        )
        assert graph.parity.l2 <= graph.parity.gate == GATES["fp16"]
        fused = graph.devices["cuda"]
        assert fused.parity.l2 <= fused.parity.gate == GATES["fp16"]
        group_norms = fused.operators["GroupNorm"] + fused.operators["SkipGroupNorm"]
        assert group_norms == 21, "all but the attention's, which are no picture's"
        own = onnx.load(tmp_path / "b" / fused.file, load_external_data=False)
        assert list(without_kernel(own)) == []
    stored = load_file(tmp_path / "b" / made.weights)
    assert {array.dtype.name for array in stored.values()} == {"float16"}
    wide = "decoder.up_blocks.1.resnets.1.conv2.weight"
    assert made.tensors[wide].source == wide
    graph_file = onnx.load(tmp_path / "b" / made.graphs[0].file, load_external_data=False)
    (cast,) = (node for node in graph_file.graph.node if list(node.input) == [wide])
    assert (cast.op_type, cast.output[0]) == ("Cast", f"{wide}.float32")


def test_weights_that_float16_cannot_hold_keep_the_network_in_float32(
    broken: Path, tmp_path: Path
) -> None:
    weights = load_torch(broken / VAE_WEIGHTS)
    weights["decoder.conv_in.weight"] *= 1e6
    save_file(weights, broken / VAE_WEIGHTS)
    (graph,) = exported(broken, tmp_path / "b").graphs
    assert graph.precision == "fp32"
    assert graph.parity.l2 <= graph.parity.gate == GATES["fp32"]
    assert str(graph.note).startswith(f"{STAYS_FP32}: decoder.conv_in.weight reaches")
    assert str(graph.note).endswith("; 0% of the multiplications would be left to float16")


def test_an_output_that_float16_cannot_hold_keeps_the_network_in_float32(
    broken: Path, tmp_path: Path
) -> None:
    weights = load_torch(broken / VAE_WEIGHTS)
    weights["decoder.conv_out.bias"][0] = 40_000
    save_file(weights, broken / VAE_WEIGHTS)
    (graph,) = exported(broken, tmp_path / "b").graphs
    assert graph.precision == "fp32"
    assert str(graph.note).startswith(f"{STAYS_FP32}: an input or output reaches 4e+04, float16")


def test_mixed_precision_that_misses_its_gate_becomes_float32(
    overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = component.export_graph

    def spoiled(network: Any, spec: Any, module: Any, layers: Any) -> Any:
        if layers:
            dict(module.named_parameters())["decoder.conv_out.bias"][0] += 1
        return original(network, spec, module, layers)

    monkeypatch.setattr(component, "export_graph", spoiled)
    heard: list[tuple[str, int, int]] = []
    made = exported(overflowing, tmp_path / "b", heard)
    (graph,) = made.graphs
    assert graph.precision == "fp32"
    assert graph.parity.l2 <= graph.parity.gate == GATES["fp32"]
    assert str(graph.note).startswith(f"{STAYS_FP32}: decoder.up_blocks.1.resnets.1.conv2 reaches")
    assert "; with only these in float32, vae_decoder/64x64.b1.onnx: sample differs" in graph.note
    assert {tensor.dtype for tensor in (*graph.inputs, *graph.outputs)} == {"float32"}
    steps = [done for _, done, _ in heard]
    assert steps == [*range(5), *range(5)]
    assert (tmp_path / "b" / made.weights).is_file()
