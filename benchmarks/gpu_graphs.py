"""The networks of a piece: one PyTorch module, and the graphs that are traced from it.

Weights are random, in the true architecture: speed does not depend on what a network has learnt.
Both sides compute with the same ones. Nothing is proven here, an export does that.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from benchmarks.architectures import ARCHITECTURES
from benchmarks.checkpoints import TOUCH_UP, Model, mean_and_std, skeleton
from benchmarks.gpu_pieces import Piece
from edgediffusion.cuda_runtime import open_cuda
from edgediffusion.manifest import STABLE_DIFFUSION, XL, DeviceGraph, GraphSpec, TensorSpec
from edgediffusion.tensorrt_build import check_capabilities
from edgediffusion.tensorrt_library import TENSORRT_RTX
from edgediffusion_export.bundle import Staging
from edgediffusion_export.cuda_graph import fuse_for_cuda, fused_operators
from edgediffusion_export.graphs import NETWORKS_OF, UNPROVEN, Network
from edgediffusion_export.onnx_export import export_graph
from edgediffusion_export.plans import write_plans

_DATA: Final = "weights.data"
_TOKENS: Final = 77


@dataclass(frozen=True)
class Subject:
    """A network at its piece's size: the module in fp16, its graph's spec and folder, inputs."""

    piece: Piece
    module: torch.nn.Module
    network: Network
    spec: GraphSpec
    folder: Path
    inputs: dict[str, NDArray[Any]]

    @property
    def path(self) -> Path:
        """The plain graph."""
        return self.folder / self.spec.file


@contextmanager
def prepared(piece: Piece, model: Model | None = None) -> Iterator[Subject]:
    """Build and trace a piece's network; its files go when the block ends.

    ``model`` takes the place of the architecture's own, for tests.
    """
    network = _network(piece)
    model = model or ARCHITECTURES[piece.architecture].models[network.part]
    module = build(model)
    spec = _spec(piece, network, model)
    with TemporaryDirectory(prefix="edgediffusion-gpu-") as name:
        folder = Path(name)
        spec = _write(network, spec, module, folder)
        yield Subject(piece, module, network, spec, folder, seeded_inputs(spec))


def with_plan(subject: Subject) -> GraphSpec:
    """Build the engine of TensorRT for RTX for the GPU at hand, as an export does.

    Returns the spec that lists it. Raises DeviceError without the library or a GPU, RequestError
    for a GPU that the library builds nothing for.
    """
    capability = open_cuda(TENSORRT_RTX).gpu.compute_capability
    check_capabilities(TENSORRT_RTX.load(), [capability])
    return write_plans(subject.spec, Staging(subject.folder), [(capability,)])


def graph_without_values(piece: Piece) -> ir.Model:
    """Trace a piece's network whose weights have no values: their memory is never touched."""
    network = _network(piece)
    model = ARCHITECTURES[piece.architecture].models[network.part]
    module = skeleton(model).half().to_empty(device="cpu").eval().requires_grad_(False)
    return export_graph(network, _spec(piece, network, model), module)


def build(model: Model, seed: int = 0) -> torch.nn.Module:
    """Make a network with random weights in fp16, on the CPU."""
    if model.library == "transformers":  # its buffers are not in the state
        cls = getattr(importlib.import_module(model.library), model.class_name)
        torch.manual_seed(seed)
        made: torch.nn.Module = cls(cls.config_class(**model.config))
        return made.half().eval()
    module = skeleton(model).half().to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        mean, std = mean_and_std(name, tuple(parameter.shape))
        parameter.requires_grad_(False)
        parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    _touch_up(model, module)
    return module


def _touch_up(model: Model, module: torch.nn.Module) -> None:
    """Keep a random UNet's predictions near its input, so that whole pictures stay finite."""
    pattern, change = TOUCH_UP.get(model.class_name, (r"$^", lambda weights: None))
    chosen = {n: p for n, p in module.named_parameters() if re.search(pattern, n)}
    values = {name: parameter.float().numpy() for name, parameter in chosen.items()}
    change(values)
    for name, parameter in chosen.items():
        parameter.copy_(torch.from_numpy(values[name]))


def seeded_inputs(spec: GraphSpec) -> dict[str, NDArray[Any]]:
    """Noise for every input; tokens are small numbers, and a timestep is one in the middle."""
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        if tensor.name == "timestep":
            value: NDArray[Any] = np.full(tensor.shape, 501.0)
        elif tensor.dtype == "int64":
            value = rng.integers(1, 1000, tensor.shape)
        else:
            value = rng.standard_normal(tensor.shape)
        made[tensor.name] = value.astype(tensor.dtype)
    return made


def _network(piece: Piece) -> Network:
    family = XL if piece.architecture == "sdxl" else STABLE_DIFFUSION
    return next(each for each in NETWORKS_OF[family] if each.name == piece.part)


def _spec(piece: Piece, network: Network, model: Model) -> GraphSpec:
    config = model.config
    width = config.get("hidden_size", 0)
    sides = {
        "one": 1, "batch": piece.rows, "channels": 4, "colours": 3, "tokens": _TOKENS,
        "context": _TOKENS, "features": config.get("cross_attention_dim", 0),
        "latent_height": piece.size // 8, "latent_width": piece.size // 8,
        "height": piece.size, "width": piece.size, "pooled": 1280, "size_numbers": 6,
        "text_width": width,
        "text_pooled": config["projection_dim"] if piece.part == "text_encoder_2" else width,
    }  # fmt: skip
    tensors = [
        tuple(
            TensorSpec(each.name, each.dtype or "float16", tuple(sides[n] for n in each.shape))
            for each in group
        )
        for group in (network.inputs, network.outputs)
    ]
    file = f"{piece.part}/{piece.size}x{piece.size}.b{piece.rows}.onnx"
    return GraphSpec(file, piece.rows, "fp16", *tensors, UNPROVEN, (), (piece.size, piece.size))


def _write(network: Network, spec: GraphSpec, module: torch.nn.Module, folder: Path) -> GraphSpec:
    """Write the plain graph and the one for CUDA, each with its weights."""
    plain = export_graph(network, spec, module)
    fused = fuse_for_cuda(plain, network.name)
    _save(plain, folder / spec.file)
    if fused is None:
        return spec
    own = DeviceGraph(spec.file.replace(".onnx", ".cuda.onnx"), fused_operators(fused), UNPROVEN)
    _save(fused, folder / own.file, f"cuda.{_DATA}")
    return msgspec.structs.replace(spec, devices={"cuda": own})


def _save(model: ir.Model, path: Path, data: str = _DATA) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=data)
