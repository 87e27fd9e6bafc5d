"""The manifest: the only truth about the graphs of a bundle, as frozen structures.

``manifest_file`` reads and checks them. Fields that this version does not know are ignored, so that
later additions to a format stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

PLAIN: Final = "plain"
PROMPT: Final = "prompt"
"""The text encoder's graph that takes embeddings from outside and gives every layer's states."""
DEEP: Final = "deep"
"""The UNet's graph that gives out, beside the prediction, the features before its last layer."""
SHALLOW: Final = "shallow"
"""The UNet's graph that takes such features in place of the work that leads to them."""
ANY_UNIT: Final = "any"
"""The form of a graph for every CPU that computes in bf16 and has none for its unit."""
GATES: Final[Mapping[str, float]] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 3e-2, "tf32": 3e-2}
"""Largest L2 error of an output over the L2 norm of its reference, by arithmetic class.

TF32 is float32 with the mantissa of fp16, and has its gate. int8 has none of its own: how much it
costs is measured at export, and kept in the manifest.
"""
STAYS_FP32: Final = "computes in float32"
"""How the note of a graph begins that an fp16 export left in fp32 for the sake of its numbers."""

TEXT_ENCODERS: Final = ("text_encoder", "text_encoder_2")
"""The components that read prompts, in the order in which their states are joined."""
Family = Literal["stable-diffusion", "stable-diffusion-xl"]
STABLE_DIFFUSION: Final = "stable-diffusion"
XL: Final = "stable-diffusion-xl"

DType = Literal["float32", "float16", "int64", "int32"]
Precision = Literal["fp32", "fp16", "int8"]
"""int8 graphs take and give float32, and hold layers that compute in 8-bit integers."""


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, dtype and static shape of one input or output of a graph."""

    name: str
    dtype: DType
    shape: tuple[int, ...]


class Noise(msgspec.Struct, frozen=True, tag="noise"):
    """A golden input that is not stored: ``randn(shape, seed) * scale``."""

    seed: int
    scale: float = 1.0


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """A golden tensor that lies in the component's golden file.

    ``indices`` names a tensor of flat positions where the stored values are a sample of a larger
    output.
    """

    tensor: str
    indices: str | None = None


class GoldenCase(msgspec.Struct, frozen=True):
    """One set of inputs and PyTorch's fp32 outputs for it."""

    inputs: dict[str, Noise | Stored]
    outputs: dict[str, Stored]


class Parity(msgspec.Struct, frozen=True):
    """What the export measured: the worst case against PyTorch in fp32, and the gate it passed."""

    l2: float
    max_abs: float
    gate: float
    cases: int


class PlanSpec(msgspec.Struct, frozen=True):
    """An engine of TensorRT for RTX that the export built from a graph, weights included.

    ``version`` is that of the library that built it, ``compute_capabilities`` the kinds of GPU that
    it is for, like ``8.9``.
    """

    file: str
    version: str
    compute_capabilities: tuple[str, ...]


class PartSpec(msgspec.Struct, frozen=True):
    """One of the graphs that together compute what a whole graph computes, one after the other.

    It takes inputs of the whole graph and outputs of the parts before it, by their names.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class DeviceGraph(msgspec.Struct, frozen=True):
    """A graph once more, in operators that only one device has: same inputs, outputs and weights.

    ``operators`` counts them by name. ``parity`` is that of the same graph with those that the CPU
    has no kernel for written out in plain ones.
    """

    file: str
    operators: dict[str, int]
    parity: Parity


class Rewritten(msgspec.Struct, frozen=True):
    """A further file of a graph: the same function of the same weights, by other operators.

    ``rewrites`` says how often each of the exporter's rewrites was made. ``hidden`` are outputs
    that the file has beside the graph's, and that nobody reads. ``parity`` is that of a file whose
    arithmetic is coarser than the graph's; others count in the graph's own.
    """

    file: str
    rewrites: dict[str, int]
    hidden: tuple[TensorSpec, ...] = ()
    parity: Parity | None = None


class GraphSpec(msgspec.Struct, frozen=True):
    """One static graph: one file per (size, batch, variant).

    ``size`` is the picture's (height, width) in pixels, or None where size plays no part.
    ``variant`` tells apart graphs of the same batch and size: ``plain``, the text encoder's
    ``prompt``, and the UNet's ``deep``, ``shallow`` and, for longer prompts, ``chunks-2`` and so
    on, or ``deep.chunks-2``. The same graph in other forms: ``parts``, cut for small machines;
    ``fp32``, what CPUs take that compute in float32; ``bf16``, what those take that compute in
    bf16, by the unit that multiplies (``amx``, ``avx512``), or ``any``; ``devices``, in operators
    of one device; ``plans``, built for kinds of GPU.
    """

    file: str
    batch: int
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parity: Parity
    golden: tuple[GoldenCase, ...]
    size: tuple[int, int] | None = None
    variant: str = PLAIN
    note: str | None = None
    plans: tuple[PlanSpec, ...] = ()
    parts: tuple[PartSpec, ...] = ()
    devices: dict[str, DeviceGraph] = {}
    fp32: Rewritten | None = None
    bf16: dict[str, Rewritten] = {}

    def named_files(self) -> Iterator[tuple[str, str]]:
        """All files of the graph, each after the field that names it."""
        yield "file", self.file
        yield from ((f"plans[{i}].file", plan.file) for i, plan in enumerate(self.plans))
        yield from ((f"parts[{i}].file", part.file) for i, part in enumerate(self.parts))
        yield from ((f"devices.{name}.file", own.file) for name, own in self.devices.items())
        if self.fp32:
            yield "fp32.file", self.fp32.file
        yield from ((f"bf16.{unit}.file", form.file) for unit, form in self.bf16.items())

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the graph."""
        return tuple(file for _, file in self.named_files())


def sparing(graph: GraphSpec) -> GraphSpec:
    """The graph without the forms whose weights take more memory than the plain one's."""
    light = {ANY_UNIT: graph.bf16[ANY_UNIT]} if ANY_UNIT in graph.bf16 else {}
    return msgspec.structs.replace(graph, fp32=None, bf16=light)


class StoredTensor(msgspec.Struct, frozen=True):
    """Where a stored tensor came from and what was done to it, in order."""

    source: str | None
    transforms: tuple[str, ...] = ()


class ComponentSpec(msgspec.Struct, frozen=True):
    """One network of the model, its graphs and the one file of weights that they share."""

    graphs: tuple[GraphSpec, ...]
    weights: str
    golden: str
    parameters: int
    tensors: dict[str, StoredTensor]


class TokenizerSpec(msgspec.Struct, frozen=True):
    """The tokenizer's file and the ids that the pipeline needs.

    ``length`` counts the tokens that begin and end a text too. ``bos`` is None for tokenizers that
    begin no text with a token of its own (T5).
    """

    file: str
    length: int
    eos: int
    pad: int
    bos: int | None = None


class LatentSpec(msgspec.Struct, frozen=True):
    """The space that the UNet works in.

    ``rgb`` (channels x 3) and ``rgb_bias`` are the linear fit from scaled latents to RGB in
    [0, 1] that previews use.
    """

    channels: int
    downsampling: int
    scaling_factor: float
    shift_factor: float
    rgb: tuple[tuple[float, float, float], ...]
    rgb_bias: tuple[float, float, float]


Recipe = Literal["clip", "clip-pair"]


class Conditioning(msgspec.Struct, frozen=True):
    """How the text reaches the UNet.

    recipe : ``clip``, the states of one text encoder; ``clip-pair`` as in SDXL, those of two side
        by side, the second one's pooled vector, and the picture's size.
    hidden_state : the text encoders' output that has the states.
    width : numbers in a state, of all text encoders together.
    zero_empty_negative : an empty negative prompt is all zeros instead of encoded.
    """

    recipe: Recipe
    hidden_state: str
    width: int
    zero_empty_negative: bool = False


class Defaults(msgspec.Struct, frozen=True):
    """What a request means where it says nothing. ``sampler`` None: the scheduler's own."""

    steps: int = 20
    guidance: float = 7.5
    sampler: str | None = None


class Source(msgspec.Struct, frozen=True):
    """The checkpoint that was exported: its name, revision and the sha256 of its weights."""

    checkpoint: str
    revision: str | None
    sha256: dict[str, str]


class FileSpec(msgspec.Struct, frozen=True):
    """Size in bytes and sha256 (lower-case hex) of one file of the bundle."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """Everything that a bundle says about itself."""

    format: int
    name: str
    family: Family
    created: str
    tools: dict[str, str]
    source: Source
    license: str
    precision: Precision
    store: Precision
    components: dict[str, ComponentSpec]
    tokenizer: TokenizerSpec
    scheduler: dict[str, Any]
    latent: LatentSpec
    conditioning: Conditioning
    gates: dict[str, float]
    defaults: Defaults
    files: dict[str, FileSpec]
    tokenizer_2: TokenizerSpec | None = None

    @property
    def tokenizers(self) -> dict[str, TokenizerSpec]:
        """The tokenizer of each text encoder, by the component's name."""
        specs = (self.tokenizer, self.tokenizer_2)
        return {name: spec for name, spec in zip(TEXT_ENCODERS, specs, strict=True) if spec}

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The picture sizes (height, width) that the UNet has graphs for, ascending."""
        return tuple(sorted({g.size for g in self.components["unet"].graphs if g.size}))


def tokenizer_name(text_encoder: str) -> str:
    """Name the tokenizer of a text encoder: its folder, and its field of the manifest."""
    return text_encoder.replace("text_encoder", "tokenizer")


def variant_name(kind: str = PLAIN, chunks: int = 1) -> str:
    """The variant of graphs of a kind for prompts of that many chunks of the text encoder."""
    parts = [] if kind == PLAIN else [kind]
    parts += [] if chunks == 1 else [f"chunks-{chunks}"]
    return ".".join(parts) or PLAIN
