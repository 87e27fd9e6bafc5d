"""The graphs of a bundle as data: names, static shapes and dtypes, and the call that each traces.

Names follow Optimum's ONNX convention. The VAE graphs take and give unscaled latents (the runtime
scales by the manifest's LatentSpec); the tiny decoder takes the latents of the UNet as they are.

The UNet takes one picture for all rows of its batch, which have texts of their own.

``timestep`` is float32 in fp16 graphs too: fp16 holds no fraction above 1024 and no odd integer
above 2048, and the network makes its sine features of it in float32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from edgediffusion.manifest import (
    DEEP,
    PLAIN,
    PROMPT,
    SHALLOW,
    STABLE_DIFFUSION,
    XL,
    DType,
    Family,
    GraphSpec,
    Parity,
    Precision,
    TensorSpec,
    variant_name,
)
from edgediffusion_export.architecture import SIZE_NUMBERS, Architecture, Size
from edgediffusion_export.deepcache import added_conditions, denoise_deep, denoise_shallow
from edgediffusion_export.text_graphs import (
    encode_penultimate,
    encode_prompt,
    encode_prompt_penultimate,
    encode_text,
)

Call = Callable[..., Any]

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
    call: Call
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


def denoise(
    model: Any,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    *pooled_and_size: torch.Tensor,
) -> Any:
    """The raw prediction of a UNet2DConditionModel; SDXL's takes two inputs more."""
    more = added_conditions(*pooled_and_size)
    return model(sample, timestep, text, added_cond_kwargs=more, return_dict=False)[0]


def for_all_texts(call: Call) -> Call:
    """Let a UNet's call take one picture for all rows of text."""

    def run(
        model: Any, sample: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, *more: Any
    ) -> Any:
        return call(model, sample.expand(len(text), -1, -1, -1), timestep, text, *more)

    return run


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
_PREDICTION: Final = Tensor("out_sample", _LATENTS)
_DEEP_FEATURES: Final = Tensor(
    "deep_features", ("batch", "deep_channels", "latent_height", "latent_width")
)
_UNET_INPUTS: Final = (
    Tensor("sample", ("one", *_LATENTS[1:])),
    Tensor("timestep", ("one",), "float32"),
    Tensor("encoder_hidden_states", ("batch", "context", "features")),
)
_XL_INPUTS: Final = (
    *_UNET_INPUTS,
    # float32 in fp16 graphs, too: diffusers joins it with float32 numbers, ONNX joins one kind only
    Tensor("text_embeds", ("batch", "pooled"), "float32"),
    Tensor("time_ids", ("batch", "size_numbers"), "float32"),
)


def _text_encoder(name: str, calls: tuple[Call, Call], hidden_state: str) -> Network:
    """A text encoder by its calls: from ids to states, and from ids and vectors to all states."""
    ids = Tensor("input_ids", ("batch", "tokens"), "int64")
    pooled = Tensor("pooler_output", ("batch", "text_pooled"))
    prompt = Network(
        name=PROMPT,
        part=name,
        call=calls[1],
        inputs=(ids, Tensor("extra_embeddings", ("slots", "text_width"))),
        outputs=(
            Tensor("skip_states", ("batch", "text_states", "tokens", "text_width")),
            pooled,
        ),
        sized=False,
    )
    return Network(
        name=name,
        part=name,
        call=calls[0],
        inputs=(ids,),
        outputs=(Tensor(hidden_state, ("batch", "tokens", "text_width")), pooled),
        sized=False,
        other=(prompt,),
    )


def _unet(inputs: tuple[Tensor, ...]) -> Network:
    def kind(name: str, call: Call, inputs: tuple[Tensor, ...], *more: Tensor) -> Network:
        return Network(
            name=name,
            part="unet",
            call=for_all_texts(call),
            inputs=inputs,
            outputs=(_PREDICTION, *more),
            batched=True,
            chunked=True,
        )

    deep = kind(DEEP, denoise_deep, inputs, _DEEP_FEATURES)
    shallow = kind(SHALLOW, denoise_shallow, (*inputs, _DEEP_FEATURES))
    return replace(kind("unet", denoise, inputs), other=(deep, shallow))


_VAES: Final = (
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
_LAST: Final = (encode_text, encode_prompt)
_PENULTIMATE: Final = (encode_penultimate, encode_prompt_penultimate)

NETWORKS: Final = (
    _text_encoder("text_encoder", _LAST, "last_hidden_state"),
    _unet(_UNET_INPUTS),
    *_VAES,
)
XL_NETWORKS: Final = (
    _text_encoder("text_encoder", _PENULTIMATE, "penultimate_hidden_state"),
    _text_encoder("text_encoder_2", _PENULTIMATE, "penultimate_hidden_state"),
    _unet(_XL_INPUTS),
    *_VAES,
)
NETWORKS_OF: Final[Mapping[Family, tuple[Network, ...]]] = {
    STABLE_DIFFUSION: NETWORKS,
    XL: XL_NETWORKS,
}


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
                    shapes |= _text_dimensions(architecture, network.part)
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
        "features": architecture.width,
        "pooled": architecture.pooled,
        "size_numbers": SIZE_NUMBERS,
        "channels": architecture.channels,
        "deep_channels": architecture.deep_channels,
        "moments": 2 * architecture.channels,
        "colours": 3,
        "height": height,
        "width": width,
        "latent_height": height // architecture.downsampling,
        "latent_width": width // architecture.downsampling,
    }


def _text_dimensions(architecture: Architecture, part: str) -> dict[str, int]:
    """Those of one text encoder. A pair gives no states of the last layer."""
    if part not in architecture.texts:
        return {}
    text = architecture.texts[part]
    states = text.layers + (len(architecture.texts) == 1)
    return {"text_width": text.width, "text_pooled": text.pooled, "text_states": states}


def _resolve(tensor: Tensor, dimensions: dict[str, int], precision: Precision) -> TensorSpec:
    shape = tuple(dimensions[name] for name in tensor.shape)
    return TensorSpec(tensor.name, tensor.dtype or FLOATS[precision], shape)
