"""``manifest.json``: read in three steps, checked, and written.

msgspec decodes the file to plain data, one checker collects every fault with its JSON path, and
only then are the structures of ``manifest`` built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgediffusion.errors import ManifestError
from edgediffusion.manifest import (
    GATES,
    PROMPT,
    TEXT_ENCODERS,
    ComponentSpec,
    GraphSpec,
    Manifest,
    tokenizer_name,
)
from edgediffusion.structure import faults_of

FORMAT: Final = 3
"""The newest format that this version reads. Each bundle is written as the oldest that can say what
it has: 3 with two text encoders, 2 with int8 graphs, else 1."""
MANIFEST_NAME: Final = "manifest.json"

# Portable on every file system: no drive, no backslash, no "..", no hidden file, no odd character.
_SAFE_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


def format_of(components: Mapping[str, ComponentSpec]) -> int:
    """Return the oldest format whose readers understand these graphs."""
    if "text_encoder_2" in components:
        return 3
    is_int8 = any(g.precision == "int8" for c in components.values() for g in c.graphs)
    return 2 if is_int8 else 1


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
    texts = TEXT_ENCODERS if manifest.conditioning.recipe == "clip-pair" else TEXT_ENCODERS[:1]
    for name in (*texts, "unet", "vae_decoder"):
        if name not in manifest.components:
            yield f"$.components: {name} is missing"
    if len(manifest.tokenizers) != len(texts):
        yield f"$.tokenizer_2: goes with recipe clip-pair, got {manifest.conditioning.recipe}"
    for name, component in manifest.components.items():
        yield from _component_faults(f"$.components.{name}", name, component, manifest)
    for name, tokenizer in manifest.tokenizers.items():
        at = f"$.{tokenizer_name(name)}"
        if tokenizer.file not in manifest.files:
            yield f"{at}.file: {tokenizer.file!r} is not listed in $.files"
        if tokenizer.length < 3:
            yield f"{at}.length: got {tokenizer.length}, expected at least 3"
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
        if name in TEXT_ENCODERS and graph.variant == PROMPT:
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
