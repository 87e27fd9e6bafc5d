"""The graphs of a bundle as data: names, static shapes and dtypes, and the call that each traces.

Names follow Optimum's ONNX convention. The VAE graphs take and give unscaled latents (the runtime
scales by the manifest's LatentSpec); the tiny decoder takes the latents of the UNet as they are.

``timestep`` is float32 in fp16 graphs too: fp16 holds no fraction above 1024 and no odd integer
above 2048, and the network makes its sine features of it in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from edgediffusion.manifest import DType, GraphSpec, Parity, Precision, TensorSpec
from edgediffusion_export.architecture import Architecture, Size

UNPROVEN: Final = Parity(l2=float("inf"), max_abs=float("inf"), gate=0.0, cases=0)
"""Stands in a GraphSpec until the graph was measured."""

FLOATS: Final[dict[Precision, DType]] = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class Tensor:
    """An input or output with a symbolic shape; dtype None is the precision of the graph."""

    name: str
    shape: tuple[str, ...]
    dtype: DType | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """One component of a bundle: the part of the checkpoint that it traces, and how.

    prefixes : parameters of the part that this component uses; empty means all.
    sized : whether there is a graph for each picture size.
    batched : whether there is a graph for each batch size that was asked for.
    """

    name: str
    part: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    prefixes: tuple[str, ...] = ()
    sized: bool = True
    batched: bool = False


def _encode_text(model: Any, input_ids: torch.Tensor) -> Any:
    out = model(input_ids=input_ids)
    return out.last_hidden_state, out.pooler_output


def _denoise(model: Any, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> Any:
    return model(sample, timestep, text, return_dict=False)[0]


def _decode(model: Any, latents: torch.Tensor) -> Any:
    return model.decode(latents, return_dict=False)[0]


def _decode_tiny(model: Any, latents: torch.Tensor) -> Any:
    """Undo the tiny VAE's own scaling (usually 1), then decode to [-1, 1]."""
    return model.decode(latents / model.config.scaling_factor, return_dict=False)[0]


def _encode_moments(model: Any, sample: torch.Tensor) -> Any:
    """Mean and log-variance of the latents; drawing from them is the runtime's business."""
    hidden = model.encoder(sample)
    return hidden if model.quant_conv is None else model.quant_conv(hidden)


_LATENTS: Final = ("batch", "channels", "latent_height", "latent_width")
_PICTURE: Final = ("batch", "colours", "height", "width")

NETWORKS: Final = (
    Network(
        name="text_encoder",
        part="text_encoder",
        call=_encode_text,
        inputs=(Tensor("input_ids", ("batch", "tokens"), "int64"),),
        outputs=(
            Tensor("last_hidden_state", ("batch", "tokens", "features")),
            Tensor("pooler_output", ("batch", "features")),
        ),
        sized=False,
    ),
    Network(
        name="unet",
        part="unet",
        call=_denoise,
        inputs=(
            Tensor("sample", _LATENTS),
            Tensor("timestep", ("one",), "float32"),
            Tensor("encoder_hidden_states", ("batch", "tokens", "features")),
        ),
        outputs=(Tensor("out_sample", _LATENTS),),
        batched=True,
    ),
    Network(
        name="vae_decoder",
        part="vae",
        call=_decode,
        inputs=(Tensor("latent_sample", _LATENTS),),
        outputs=(Tensor("sample", _PICTURE),),
        prefixes=("decoder.", "post_quant_conv."),
    ),
    Network(
        name="vae_encoder",
        part="vae",
        call=_encode_moments,
        inputs=(Tensor("sample", _PICTURE),),
        outputs=(
            Tensor("latent_parameters", ("batch", "moments", "latent_height", "latent_width")),
        ),
        prefixes=("encoder.", "quant_conv."),
    ),
    Network(
        name="vae_tiny_decoder",
        part="vae_tiny",
        call=_decode_tiny,
        inputs=(Tensor("latent_sample", _LATENTS),),
        outputs=(Tensor("sample", _PICTURE),),
        prefixes=("decoder.",),
    ),
)


class Traced(torch.nn.Module):
    """A network's module behind the call that its graph is traced from."""

    def __init__(self, network: Network, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self._call = network.call

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the network's outputs as plain tensors."""
        return self._call(self.model, *inputs)


def graph_specs(
    network: Network,
    architecture: Architecture,
    sizes: Sequence[Size],
    batches: Sequence[int],
    precision: Precision,
) -> Iterator[GraphSpec]:
    """Yield the specs of a component's graphs, each still unproven and without golden cases."""
    for size in sizes if network.sized else (None,):
        for batch in batches if network.batched else (1,):
            shapes = _dimensions(architecture, size or (0, 0), batch)
            stem = f"{size[0]}x{size[1]}.b{batch}" if size else f"b{batch}"
            yield GraphSpec(
                file=f"{network.name}/{stem}.onnx",
                batch=batch,
                precision=precision,
                inputs=tuple(_resolve(t, shapes, precision) for t in network.inputs),
                outputs=tuple(_resolve(t, shapes, precision) for t in network.outputs),
                parity=UNPROVEN,
                golden=(),
                size=size,
            )


def _dimensions(architecture: Architecture, size: Size, batch: int) -> dict[str, int]:
    height, width = size
    return {
        "one": 1,
        "batch": batch,
        "tokens": architecture.tokens,
        "features": architecture.width,
        "channels": architecture.channels,
        "moments": 2 * architecture.channels,
        "colours": 3,
        "height": height,
        "width": width,
        "latent_height": height // architecture.downsampling,
        "latent_width": width // architecture.downsampling,
    }


def _resolve(tensor: Tensor, dimensions: dict[str, int], precision: Precision) -> TensorSpec:
    shape = tuple(dimensions[name] for name in tensor.shape)
    return TensorSpec(tensor.name, tensor.dtype or FLOATS[precision], shape)
