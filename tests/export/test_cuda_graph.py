"""Fusing for CUDA: what is fused, what is left alone, and that both compute the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.attention import FeedForward

from edgediffusion.errors import CheckpointError
from edgediffusion.golden import relative_l2
from edgediffusion_export import cuda_graph
from edgediffusion_export.cuda_graph import fuse_for_cuda, fused_operators
from edgediffusion_export.cuda_proof import written_out
from edgediffusion_export.graphs import NETWORKS, graph_specs
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.quiet import quiet_onnx
from edgediffusion_export.source import open_checkpoint
from tests.export.cuda_operators import evaluate

Array = np.ndarray[Any, Any]


def traced(module: torch.nn.Module, *inputs: torch.Tensor) -> ir.Model:
    with quiet_onnx(), torch.no_grad():
        names = [f"in_{i}" for i in range(len(inputs))]
        program = torch.onnx.export(
            module.eval(), inputs, input_names=names, dynamo=True, opset_version=20, verbose=False
        )
    assert program is not None
    model: ir.Model = program.model
    return model


def on_cpu(model: ir.Model, *inputs: Array) -> list[Array]:
    data = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def in_numpy(model: ir.Model, *inputs: Array) -> list[Array]:
    names = [each.name for each in model.graph.inputs]
    proto = ir.serde.serialize_model(model)
    return evaluate(proto, dict(zip(names, inputs, strict=True)))  # type: ignore[arg-type]


def require_fused(model: ir.Model, component: str = "unet") -> ir.Model:
    fused = fuse_for_cuda(model, component)
    assert fused is not None
    return fused


def check_all_ways(plain: ir.Model, fused: ir.Model, most: float, *inputs: Array) -> None:
    """The plain graph, the fused one in NumPy, and the fused one written out, agree."""
    want = on_cpu(plain, *inputs)
    for got in (in_numpy(fused, *inputs), on_cpu(written_out(fused), *inputs)):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype
            assert relative_l2(one, other) < most


class Resnet(torch.nn.Module):
    """Norm, SiLU, convolution, a time embedding, and a residual that is used twice."""

    def __init__(self, channels: int = 16, groups: int = 4, eps: float = 1e-3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norms = torch.nn.ModuleList(
            torch.nn.GroupNorm(groups, channels, eps=eps) for _ in range(3)
        )
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)
        )
        for norm in self.norms:
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        silu = torch.nn.functional.silu
        hidden = self.convs[0](silu(self.norms[0](x))) + time[:, :, None, None]
        total = x + self.convs[1](silu(self.norms[1](hidden)))
        return self.norms[2](total), total


def resnet_inputs(dtype: type, channels: int = 16) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return (
        (3 * rng.standard_normal((2, channels, 4, 6)) + 1).astype(dtype),
        rng.standard_normal((2, channels)).astype(dtype),
    )


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float16", 3e-3)])
def test_group_norms_take_in_silu_and_the_sum_before_them(dtype: str, most: float) -> None:
    module = Resnet().to(getattr(torch, dtype))
    inputs = resnet_inputs(np.dtype(dtype).type)
    plain = traced(module, *map(torch.from_numpy, inputs))
    fused = require_fused(plain)
    assert fused_operators(fused) == {"GroupNorm": 1, "SkipGroupNorm": 2}
    left = Counter(node.op_type for node in fused.graph)
    assert not left["Sigmoid"] + left["InstanceNormalization"] + left["Unsqueeze"]
    norms = [node for node in fused.graph if node.op_type.endswith("GroupNorm")]
    assert [node.attributes["activation"].as_int() for node in norms] == [1, 1, 0]
    assert {node.attributes["groups"].as_int() for node in norms} == {4}
    assert all(node.attributes["epsilon"].as_float() == pytest.approx(1e-3) for node in norms)
    check_all_ways(plain, fused, most, *inputs)


def test_a_fused_norm_has_the_bytes_of_the_checkpoints_own_weight() -> None:
    module = Resnet().half()
    fused = require_fused(traced(module, *map(torch.from_numpy, resnet_inputs(np.float16))))
    stored = {
        value.const_value.numpy().tobytes()
        for value in fused.graph.initializers.values()
        if value.const_value is not None
    }
    for name, parameter in module.named_parameters():
        assert parameter.detach().numpy().tobytes() in stored, name


@pytest.mark.parametrize(
    ("channels", "groups", "fits"), [(12, 4, False), (8, 4, True), (1028, 2, False)]
)
def test_group_norms_that_the_kernel_does_not_take_stay_plain(
    channels: int, groups: int, fits: bool
) -> None:
    module = torch.nn.GroupNorm(groups, channels)
    fused = fuse_for_cuda(traced(module, torch.zeros(1, channels, 2, 2)), "unet")
    assert (fused is not None) == fits


def test_a_norm_of_a_row_of_tokens_stays_plain() -> None:
    """The kernel takes pictures only; the VAE's attention normalises (batch, channels, places)."""
    assert fuse_for_cuda(traced(torch.nn.GroupNorm(4, 16), torch.zeros(1, 16, 8)), "unet") is None


class Block(torch.nn.Module):
    """The feed-forward of a transformer block with its residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.forward_ = FeedForward(channels, activation_fn="geglu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_(x) + x


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float16", 3e-3)])
def test_the_gate_of_a_feed_forward_is_one_operator(dtype: str, most: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 320)).astype(dtype)
    plain = traced(Block(320).to(getattr(torch, dtype)), torch.from_numpy(x))
    fused = require_fused(plain)
    assert fused_operators(fused) == {"BiasAdd": 1, "BiasSplitGelu": 1}
    check_all_ways(plain, fused, most, x)


def test_a_gate_of_a_width_without_a_kernel_stays_plain() -> None:
    fused = require_fused(traced(Block(32), torch.zeros(2, 5, 32)))
    assert fused_operators(fused) == {"BiasAdd": 1}


class LastWord(torch.nn.Module):
    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (ids == 7).int().argmax(dim=-1), ids.argmax(dim=-1)


def test_text_encoders_find_the_end_of_a_text_without_arg_max() -> None:
    ids = np.array([[3, 7, 7, 1], [9, 9, 2, 7], [1, 2, 3, 4], [49407, 0, 49407, 0]])
    plain = traced(LastWord(), torch.from_numpy(ids))
    fused = require_fused(plain, "text_encoder")
    assert not any(node.op_type == "ArgMax" for node in fused.graph)
    first, largest = on_cpu(fused, ids)
    assert first.tolist() == [1, 3, 0, 0]
    assert largest.tolist() == [1, 0, 3, 0]
    assert first.dtype == largest.dtype == np.int64


@pytest.fixture(scope="module")
def unet(checkpoint: Path) -> tuple[ir.Model, list[Array]]:
    """The tiny checkpoint's UNet at guidance batch 2, with inputs."""
    source = open_checkpoint(str(checkpoint), None)
    network = next(each for each in NETWORKS if each.name == "unet")
    sizes = [source.architecture.default_size]
    (spec,) = list(graph_specs(network, source.architecture, sizes, [2], "fp32"))[:1]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(tensor.shape).astype(tensor.dtype) for tensor in spec.inputs]
    inputs[1][:] = 481
    return export_graph(network, spec, source.load(network.part)), inputs


def test_a_whole_unet_is_fused_and_computes_the_same(unet: tuple[ir.Model, list[Array]]) -> None:
    plain, inputs = unet
    before = Counter(node.op_type for node in plain.graph)
    fused = require_fused(plain)
    assert Counter(node.op_type for node in plain.graph) == before
    found = fused_operators(fused)
    assert found["GroupNorm"] + found["SkipGroupNorm"] == before["InstanceNormalization"]
    assert found["MultiHeadAttention"] == before["Softmax"]
    assert found["SkipLayerNormalization"] == before["LayerNormalization"] - before["Gelu"]
    assert found["BiasAdd"] == before["Gelu"]
    assert [v.name for v in fused.graph.inputs] == [v.name for v in plain.graph.inputs]
    assert [v.name for v in fused.graph.outputs] == [v.name for v in plain.graph.outputs]
    check_all_ways(plain, fused, 1e-5, *inputs)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("GROUP_NORM", "0 of 21 group norms, 0 of 17 SiLUs behind them, 0 of 15 sums before them"),
        ("SILU", "0 of 17 SiLUs behind them"),
        ("SKIP_GROUP_NORM", "0 of 15 sums before them"),
        ("fuse_mha2", "0 of 8 attentions"),
        ("fuse_skip_layer_normalization", "0 of 8 layer norms with a sum, 12 of 4 biased sums"),
        ("BIAS_ADD", "0 of 4 biased sums"),
    ],
)
def test_less_fused_than_the_graph_holds_is_an_error(
    unet: tuple[ir.Model, list[Array]], monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    """As with a version of onnxscript or torch whose graphs the rules do not match."""
    rule = getattr(cuda_graph, missing)
    step: Callable[[ir.Model], object] = getattr(rule, "apply_to_model", rule)
    kept = tuple(each for each in cuda_graph._FOR_PICTURES if each != step)
    assert len(kept) == len(cuda_graph._FOR_PICTURES) - 1
    monkeypatch.setattr(cuda_graph, "_FOR_PICTURES", kept)
    said = f"unet: fused only {said} for --target cuda. No bundle was written"
    with pytest.raises(CheckpointError, match=said):
        fuse_for_cuda(unet[0], "unet")


def test_a_gate_that_is_not_fused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "_FOR_PICTURES", ())
    with pytest.raises(CheckpointError, match="fused only 0 of 1 gates"):
        fuse_for_cuda(traced(Block(320), torch.zeros(1, 2, 320)), "unet")
