"""The manifest: the only truth about the graphs of a bundle.

``manifest.json`` is read in three steps. msgspec decodes it to plain data, one checker collects
every fault with its JSON path, and only then are the frozen structures below built. Fields that
this version does not know are ignored, so that later additions to format 1 stay readable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from edgediffusion.errors import ManifestError
from edgediffusion.structure import faults_of

FORMAT: Final = 2
"""The newest format that this version reads. Bundles without int8 graphs are still written as 1."""
MANIFEST_NAME: Final = "manifest.json"
PLAIN: Final = "plain"
PROMPT: Final = "prompt"
"""The text encoder's graph that takes embeddings from outside and gives every layer's states."""
DEEP: Final = "deep"
"""The UNet's graph that gives out, beside the prediction, the features before its last layer."""
SHALLOW: Final = "shallow"
"""The UNet's graph that takes such features in place of the work that leads to them."""
GATES: Final[Mapping[str, float]] = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 3e-2, "tf32": 3e-2}
"""Largest L2 error of an output over the L2 norm of its reference, by arithmetic class.

TF32 is float32 with the mantissa of fp16, and has its gate. int8 has none of its own: how much it
costs is measured at export, and kept in the manifest.
"""
STAYS_FP32: Final = "computes in float32"
"""How the note of a graph begins that an fp16 export left in fp32 for the sake of its numbers."""

# Portable on every file system: no drive, no backslash, no "..", no hidden file, no odd character.
_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")

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
    """A second file of a graph: the same function of the same weights, by other operators.

    ``rewrites`` says how often each of the exporter's rewrites was made.
    """

    file: str
    rewrites: dict[str, int]


class GraphSpec(msgspec.Struct, frozen=True):
    """One static graph: one file per (size, batch, variant).

    ``size`` is the picture's (height, width) in pixels, or None where size plays no part.
    ``variant`` tells apart graphs of the same batch and size: ``plain``, the text encoder's
    ``prompt``, and the UNet's ``deep``, ``shallow`` and, for longer prompts, ``chunks-2`` and so
    on, or ``deep.chunks-2``. The same graph in other forms: ``parts``, cut for small machines;
    ``fp32``, what CPUs take that compute in float32; ``devices``, in operators of one device;
    ``plans``, built for kinds of GPU.
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

    def named_files(self) -> Iterator[tuple[str, str]]:
        """All files of the graph, each after the field that names it."""
        yield "file", self.file
        yield from ((f"plans[{i}].file", plan.file) for i, plan in enumerate(self.plans))
        yield from ((f"parts[{i}].file", part.file) for i, part in enumerate(self.parts))
        yield from ((f"devices.{name}.file", own.file) for name, own in self.devices.items())
        if self.fp32:
            yield "fp32.file", self.fp32.file

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the graph."""
        return tuple(file for _, file in self.named_files())


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


class Conditioning(msgspec.Struct, frozen=True):
    """How the text reaches the UNet: which output of which component, of which width."""

    recipe: Literal["clip"]
    hidden_state: str
    width: int


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
    family: Literal["stable-diffusion"]
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

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The picture sizes (height, width) that the UNet has graphs for, ascending."""
        return tuple(sorted({g.size for g in self.components["unet"].graphs if g.size}))


def format_of(components: Mapping[str, ComponentSpec]) -> int:
    """Return the oldest format whose readers understand these graphs."""
    is_int8 = any(g.precision == "int8" for c in components.values() for g in c.graphs)
    return 2 if is_int8 else 1


def variant_name(kind: str = PLAIN, chunks: int = 1) -> str:
    """The variant of graphs of a kind for prompts of that many chunks of the text encoder."""
    parts = [] if kind == PLAIN else [kind]
    parts += [] if chunks == 1 else [f"chunks-{chunks}"]
    return ".".join(parts) or PLAIN


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json`` in a bundle's folder.

    Raises ManifestError naming every fault at once, each with its JSON path.
    """
    path = folder / MANIFEST_NAME
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(
            f"{folder} is not a bundle: it has no {MANIFEST_NAME}. "
            "Make one with: edgediffusion export CHECKPOINT -o BUNDLE"
        ) from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_manifest(raw, where=str(path))


def parse_manifest(raw: bytes, where: str = MANIFEST_NAME) -> Manifest:
    """Decode and check the bytes of a manifest; ``where`` names them in the error."""
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"{where} is not valid JSON ({error}): the bundle is damaged, copy or export it again"
        ) from None
    _check_format(data, where)
    faults = list(faults_of(data, Manifest))
    if not faults:
        faults = list(_inconsistencies(msgspec.convert(data, Manifest)))
    if faults:
        listed = "\n  ".join(faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ManifestError(f"{where} has {len(faults)} fault(s):\n  {listed}{more}")
    return msgspec.convert(data, Manifest)


def dump_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as indented JSON with a stable key order."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1)


def _check_format(data: object, where: str) -> None:
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and not isinstance(found, bool) and found > FORMAT:
        raise ManifestError(
            f"{where} has bundle format {found}, this version of edgediffusion reads up to "
            f"{FORMAT}: upgrade with pip install -U edgediffusion"
        )


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    """What the types cannot say: references, ranges, safe paths."""
    if not 1 <= manifest.format <= FORMAT:
        yield f"$.format: got {manifest.format}, expected 1 to {FORMAT}"
    for precision in sorted({g.precision for c in manifest.components.values() for g in c.graphs}):
        if precision not in GATES and precision not in manifest.gates:
            yield f"$.gates: has none for {precision}, which graphs compute in"
    for path, spec in manifest.files.items():
        if not _SAFE_PATH.fullmatch(path):
            yield f"$.files: {path!r} is not a plain relative path inside the bundle"
        if spec.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", spec.sha256):
            yield f"$.files[{path!r}]: needs a size of at least 0 and a lower-case hex sha256"
    for name in ("text_encoder", "unet", "vae_decoder"):
        if name not in manifest.components:
            yield f"$.components: {name} is missing"
    for name, component in manifest.components.items():
        yield from _component_faults(f"$.components.{name}", name, component, manifest)
    if manifest.tokenizer.file not in manifest.files:
        yield f"$.tokenizer.file: {manifest.tokenizer.file!r} is not listed in $.files"
    if manifest.tokenizer.length < 3:
        yield f"$.tokenizer.length: got {manifest.tokenizer.length}, expected at least 3"
    latent = manifest.latent
    if latent.channels < 1 or latent.downsampling < 1 or latent.scaling_factor == 0:
        yield "$.latent: channels and downsampling must be positive, scaling_factor not 0"
    if len(latent.rgb) != latent.channels:
        yield f"$.latent.rgb: got {len(latent.rgb)} rows, expected {latent.channels}"
    if manifest.defaults.steps < 1:
        yield f"$.defaults.steps: got {manifest.defaults.steps}, expected at least 1"


def _component_faults(
    at: str, name: str, component: ComponentSpec, manifest: Manifest
) -> Iterator[str]:
    if not component.graphs:
        yield f"{at}.graphs: is empty"
    files = {"weights": component.weights, "golden": component.golden}
    for i, graph in enumerate(component.graphs):
        files |= {f"graphs[{i}].{field}": file for field, file in graph.named_files()}
    for field, path in files.items():
        if path not in manifest.files:
            yield f"{at}.{field}: {path!r} is not listed in $.files"
        elif not path.startswith(f"{name}/"):
            yield f"{at}.{field}: {path!r} lies outside the component's folder {name}/"
    for i, graph in enumerate(component.graphs):
        yield from _graph_faults(f"{at}.graphs[{i}]", graph)
        if (name, graph.variant) == ("text_encoder", PROMPT):
            yield from _prompt_faults(f"{at}.graphs[{i}]", graph)


def _graph_faults(at: str, graph: GraphSpec) -> Iterator[str]:
    for field, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        names = [tensor.name for tensor in tensors]
        if not names or len(set(names)) != len(names):
            yield f"{at}.{field}: needs at least one tensor, each name once"
        for tensor in tensors:
            if any(n < 1 for n in tensor.shape):
                yield f"{at}.{field}: {tensor.name} has shape {tensor.shape}, not static"
    if graph.batch < 1:
        yield f"{at}.batch: got {graph.batch}, expected at least 1"
    if graph.size is not None and min(graph.size) < 1:
        yield f"{at}.size: got {graph.size}, expected two positive numbers"
    if graph.parts:
        yield from _part_faults(at, graph)


def _part_faults(at: str, graph: GraphSpec) -> Iterator[str]:
    """Parts run in order: each takes what the graph gets and what the parts before it gave."""
    known = set(graph.inputs)
    for n, part in enumerate(graph.parts):
        for tensor in part.inputs:
            if tensor not in known:
                yield f"{at}.parts[{n}].inputs: {tensor.name} comes from nowhere before it"
        known |= set(part.outputs)
    for tensor in graph.outputs:
        if tensor not in known:
            yield f"{at}.parts: no part gives the graph's output {tensor.name}"


def _prompt_faults(at: str, graph: GraphSpec) -> Iterator[str]:
    """The runtime takes the number of layers and of embeddings from these shapes."""
    sides = {
        "input_ids": 2,
        "extra_embeddings": 2,
        "skip_states": 4,
        "pooler_output": 2,
    }
    found = {tensor.name: len(tensor.shape) for tensor in (*graph.inputs, *graph.outputs)}
    for name, expected in sides.items():
        if found.get(name) != expected:
            yield f"{at}: a {PROMPT} graph needs {name} with {expected} sides"
