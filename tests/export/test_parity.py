from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgediffusion.errors import CheckpointError, ParityError
from edgediffusion.manifest import GoldenCase, GraphSpec, Precision
from edgediffusion_export.golden import noise_cases
from edgediffusion_export.graphs import NETWORKS, Network, graph_specs
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.parity import Outputs, measure, reference
from tests.export.test_architecture import architecture

ENCODER = next(network for network in NETWORKS if network.name == "vae_encoder")


def _call(model: torch.nn.Module, sample: torch.Tensor) -> torch.Tensor:
    return model(sample)


CONV = dataclasses.replace(ENCODER, call=_call, prefixes=())
"""The encoder's inputs and outputs, round a single convolution."""


@pytest.fixture
def conv() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 8, 8, stride=8).eval().requires_grad_(False)


def prepared(
    network: Network, module: torch.nn.Module, folder: Path, precision: Precision = "fp32"
) -> tuple[GraphSpec, list[GoldenCase], list[Outputs]]:
    """Compute references, then trace the module and write the graph."""
    (spec,) = graph_specs(network, architecture(), [(64, 64)], [1], precision)
    cases = noise_cases(spec, 1.0)
    wanted = reference(network, module, spec, cases, {})
    write(network, module.half() if precision == "fp16" else module, spec, folder)
    return spec, cases, wanted


def write(network: Network, module: torch.nn.Module, spec: GraphSpec, folder: Path) -> None:
    import onnx_ir as ir

    (folder / spec.file).parent.mkdir(exist_ok=True)
    model = export_graph(network, spec, module)
    (folder / spec.file).write_bytes(ir.serde.serialize_model(model).SerializeToString())


@pytest.mark.parametrize(("precision", "gate"), [("fp32", 1e-4), ("fp16", 3e-2)])
def test_a_good_graph_passes(
    conv: torch.nn.Module, tmp_path: Path, precision: Precision, gate: float
) -> None:
    spec, cases, wanted = prepared(CONV, conv, tmp_path, precision)
    parity = measure(spec, tmp_path, cases, {}, wanted)
    assert 0 < parity.l2 < gate / 10
    assert 0 < parity.max_abs < 1
    assert (parity.gate, parity.cases) == (gate, 2)


@pytest.mark.parametrize(("precision", "fault"), [("fp32", 1e-2), ("fp16", 1.0)])
def test_one_wrong_weight_fails(
    conv: torch.nn.Module, tmp_path: Path, precision: Precision, fault: float
) -> None:
    spec, cases, wanted = prepared(CONV, conv, tmp_path, precision)
    conv.weight.data[3, 1, 4, 4] += fault
    write(CONV, conv, spec, tmp_path)
    with pytest.raises(ParityError, match=r"latent_parameters differs from PyTorch's float32 by"):
        measure(spec, tmp_path, cases, {}, wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_never_passes(conv: torch.nn.Module, tmp_path: Path, bad: float) -> None:
    spec, cases, wanted = prepared(CONV, conv, tmp_path)
    conv.bias.data[0] = bad
    write(CONV, conv, spec, tmp_path)
    with pytest.raises(ParityError, match=r"by a relative L2 of inf, the gate for fp32 is 0\.0001"):
        measure(spec, tmp_path, cases, {}, wanted)


def test_a_reference_of_nan_is_the_checkpoints_fault(conv: torch.nn.Module) -> None:
    conv.bias.data[0] = float("nan")
    (spec,) = graph_specs(CONV, architecture(), [(64, 64)], [1], "fp32")
    with pytest.raises(CheckpointError, match="vae computes NaN or infinity with PyTorch in fl"):
        reference(CONV, conv, spec, noise_cases(spec, 1.0), {})


def test_half_graphs_are_compared_with_float32(conv: torch.nn.Module) -> None:
    """The reference gets the inputs that the graph gets, in float16, and rounds no more."""
    (spec,) = graph_specs(CONV, architecture(), [(64, 64)], [1], "fp16")
    (case, _) = noise_cases(spec, 1.0)
    (wanted,) = reference(CONV, conv, spec, [case], {})
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(11))
    expected = conv(noise.half().float()).numpy()
    assert wanted["latent_parameters"].dtype == np.float32
    np.testing.assert_allclose(wanted["latent_parameters"], expected, rtol=1e-6, atol=1e-6)
