"""The graphs of a bundle as data: names, static shapes and dtypes, and the call that each traces.

Names follow Optimum's ONNX convention. The VAE graphs take and give unscaled latents (the runtime
scales by the manifest's LatentSpec); the tiny decoder takes the latents of the UNet as they are.

``timestep`` is float32 in fp16 graphs too: fp16 holds no fraction above 1024 and no odd integer
above 2048, and the network makes its sine features of it in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from edgediffusion.manifest import (
    DEEP,
    PLAIN,
    PROMPT,
    SHALLOW,
    DType,
    GraphSpec,
    Parity,
    Precision,
    TensorSpec,
    variant_name,
)
from edgediffusion_export.architecture import Architecture, Size
from edgediffusion_export.deepcache import denoise_deep, denoise_shallow

DECODERS: Final = ("vae_decoder", "vae_tiny_decoder")
"""The networks that can make a picture tile by tile."""

UNPROVEN: Final = Parity(l2=float("inf"), max_abs=float("inf"), gate=0.0, cases=0)
"""Stands in a GraphSpec until the graph was measured."""

FLOATS: Final[dict[Precision, DType]] = {"fp32": "float32", "fp16": "float16", "int8": "float32"}


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
    chunked : whether there is a graph for each number of chunks of text.
    other : further graphs of the same part and prefixes; their names begin their variants'.
    """

    name: str
    part: str
    call: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    prefixes: tuple[str, ...] = ()
    sized: bool = True
    batched: bool = False
    chunked: bool = False
    other: tuple[Network, ...] = ()

    def of(self, variant: str) -> Network:
        """The description of a variant's graphs: another's, or this one."""
        kind = variant.split(".")[0]
        return next((other for other in self.other if other.name == kind), self)


def _encode_text(model: Any, input_ids: torch.Tensor) -> Any:
    out = model(input_ids=input_ids)
    return out.last_hidden_state, out.pooler_output


def _encode_prompt(model: Any, input_ids: torch.Tensor, extra: torch.Tensor) -> Any:
    """The text encoder with rows of ``extra`` for ids below 0, and the states of all layers.

    Layer by layer what CLIPTextModel.forward does, which takes ids only. ``skip_states[:, n]`` is
    the final norm of what the encoder gives without its last n layers.
    """
    text = getattr(model, "text_model", model)  # a wrapper in earlier versions of transformers
    known = torch.where(input_ids < 0, 0, input_ids)
    rows = torch.where(input_ids < 0, -1 - input_ids, 0)
    learned = torch.nn.functional.embedding(rows, extra)
    token = text.embeddings.token_embedding(known)
    hidden = text.embeddings(
        inputs_embeds=torch.where((input_ids < 0).unsqueeze(-1), learned, token)
    )
    count = input_ids.shape[-1]
    causal = torch.full((count, count), float("-inf"), dtype=hidden.dtype).triu(1)[None, None]
    states = [hidden]
    for layer in text.encoder.layers:
        made = layer(hidden, causal)
        hidden = made[0] if isinstance(made, tuple) else made
        states.append(hidden)
    skipped = [text.final_layer_norm(each) for each in reversed(states)]
    return torch.stack(skipped, dim=1), skipped[0][:, _end(model, known)[0]]


def _end(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Where a text ends, which CLIPTextModel pools. Files of before 2023 say 2 for the largest."""
    end = model.config.eos_token_id
    return (ids if end == 2 else (ids == end)).int().argmax(dim=-1)


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
_UNET_INPUTS: Final = (
    Tensor("sample", _LATENTS),
    Tensor("timestep", ("one",), "float32"),
    Tensor("encoder_hidden_states", ("batch", "context", "features")),
)
_PREDICTION: Final = Tensor("out_sample", _LATENTS)
_DEEP_FEATURES: Final = Tensor(
    "deep_features", ("batch", "deep_channels", "latent_height", "latent_width")
)

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
        other=(
            Network(
                name=PROMPT,
                part="text_encoder",
                call=_encode_prompt,
                inputs=(
                    Tensor("input_ids", ("batch", "tokens"), "int64"),
                    Tensor("extra_embeddings", ("slots", "features")),
                ),
                outputs=(
                    Tensor("skip_states", ("batch", "states", "tokens", "features")),
                    Tensor("pooler_output", ("batch", "features")),
                ),
                sized=False,
            ),
        ),
    ),
    Network(
        name="unet",
        part="unet",
        call=_denoise,
        inputs=_UNET_INPUTS,
        outputs=(_PREDICTION,),
        batched=True,
        chunked=True,
        other=(
            Network(
                name=DEEP,
                part="unet",
                call=denoise_deep,
                inputs=_UNET_INPUTS,
                outputs=(_PREDICTION, _DEEP_FEATURES),
                batched=True,
                chunked=True,
            ),
            Network(
                name=SHALLOW,
                part="unet",
                call=denoise_shallow,
                inputs=(*_UNET_INPUTS, _DEEP_FEATURES),
                outputs=(_PREDICTION,),
                batched=True,
                chunked=True,
            ),
        ),
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

    def __init__(self, network: Network, model: torch.nn.Module, variant: str = PLAIN) -> None:
        super().__init__()
        self.model = model
        self._call = network.of(variant).call

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Return the network's outputs as plain tensors."""
        return self._call(self.model, *inputs)


def graph_specs(
    network: Network,
    architecture: Architecture,
    sizes: Sequence[Size],
    batches: Sequence[int],
    precision: Precision,
    chunks: int = 1,
) -> Iterator[GraphSpec]:
    """Yield the specs of a component's graphs, each still unproven and without golden cases.

    The plain ones come first: readers that know no variants take the first graph that fits.
    """
    for kind in (network, *network.other):
        named = replace(kind, name=network.name)
        for count in range(1, (chunks if kind.chunked else 1) + 1):
            variant = variant_name(PLAIN if kind is network else kind.name, count)
            for size in sizes if kind.sized else (None,):
                for batch in batches if kind.batched else (1,):
                    shapes = _dimensions(architecture, size or (0, 0), batch, count)
                    yield _spec(named, variant, size, batch, precision, shapes)


def _spec(
    network: Network,
    variant: str,
    size: Size | None,
    batch: int,
    precision: Precision,
    shapes: dict[str, int],
) -> GraphSpec:
    stem = f"{size[0]}x{size[1]}.b{batch}" if size else f"b{batch}"
    stem += "" if variant == PLAIN else f".{variant}"
    return GraphSpec(
        file=f"{network.name}/{stem}.onnx",
        batch=batch,
        precision=precision,
        inputs=tuple(_resolve(t, shapes, precision) for t in network.inputs),
        outputs=tuple(_resolve(t, shapes, precision) for t in network.outputs),
        parity=UNPROVEN,
        golden=(),
        size=size,
        variant=variant,
    )


def _dimensions(architecture: Architecture, size: Size, batch: int, chunks: int) -> dict[str, int]:
    height, width = size
    return {
        "one": 1,
        "batch": batch,
        "tokens": architecture.tokens,
        "context": chunks * architecture.tokens,
        "slots": architecture.tokens - 2,  # all that stand between begin and end
        "states": architecture.text_layers + 1,
        "features": architecture.width,
        "channels": architecture.channels,
        "deep_channels": architecture.deep_channels,
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
