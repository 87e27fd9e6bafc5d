"""Find, open and verify bundles."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from edgediffusion.engine import Arithmetic, EngineOptions, open_engine, resolve_device
from edgediffusion.errors import (
    BundleNotFound,
    DeviceError,
    EdgeDiffusionError,
    IntegrityError,
    RequestError,
    UnsafePath,
    choices,
)
from edgediffusion.fingerprint import libraries_of
from edgediffusion.golden import check_graph, read_tensors
from edgediffusion.hashing import ALWAYS_HASHED, remembered_sha256, sha256_file
from edgediffusion.manifest import GATES, PLAIN, ComponentSpec, GraphSpec, Manifest
from edgediffusion.manifest_file import MANIFEST_NAME, read_manifest

DEMO: Final = "shapes"
_SHIPPED: Final = Path(__file__).parent / "bundles"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest, sizes and hashes were checked when it was opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, name: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a bundle by path or name; None opens the demo bundle inside the package.

        Raises BundleNotFound, ManifestError, IntegrityError or UnsafePath.
        """
        path = find_bundle(name)
        bundle = cls(path, read_manifest(path))
        for relative in bundle.manifest.files:
            bundle.check_file(relative, remembered_sha256)
        return bundle

    def file(self, relative: str) -> Path:
        """Return the path of a listed file, checked to lie inside its component's folder."""
        path = self.path / relative
        inside = self.path.resolve() / Path(relative).parts[0]
        if not path.resolve().is_relative_to(inside):
            raise UnsafePath(
                f"{path} is a link that leaves the bundle's folder {inside}: refused. "
                "Copy the file itself into the bundle"
            )
        return path

    def check_file(self, relative: str, hash_large: Callable[[Path], str]) -> None:
        """Check presence, size and sha256 of one listed file."""
        spec, path = self.manifest.files[relative], self.file(relative)
        if not path.is_file():
            raise IntegrityError(f"{path} is missing: copy or export the bundle again")
        size = path.stat().st_size
        if size != spec.size:
            raise IntegrityError(
                f"{path} has {size} bytes, the manifest says {spec.size}: it was cut short or "
                "changed, copy or export the bundle again"
            )
        found = sha256_file(path) if size <= ALWAYS_HASHED else hash_large(path)
        if found != spec.sha256:
            raise IntegrityError(
                f"{path} has sha256 {found[:12]}…, the manifest says {spec.sha256[:12]}…: "
                "it is damaged or foreign, copy or export the bundle again"
            )

    def graph(
        self,
        component: str,
        *,
        batch: int = 1,
        size: tuple[int, int] | None = None,
        variant: str = PLAIN,
    ) -> GraphSpec:
        """Return the graph of a component for a batch and a picture size (height, width).

        Raises RequestError listing what the bundle has.
        """
        spec = self.manifest.components.get(component)
        if spec is None:
            known = choices(component, self.manifest.components)
            raise RequestError(
                f"bundle {self.manifest.name} has no component {component!r}: {known}"
            )
        for graph in spec.graphs:
            if (graph.batch, graph.variant) == (batch, variant) and graph.size in (None, size):
                return graph
        have = ", ".join(sorted({say_graph(graph) for graph in spec.graphs}))
        wanted = f"batch {batch}" + (f" at {say_size(size)}" if size else "")
        wanted += "" if variant == PLAIN else f", {variant}"
        raise RequestError(
            f"bundle {self.manifest.name} has no {component} graph for {wanted}; it has {have}. "
            "Ask for one of these, or export again with --size or --batch"
        )

    def batches(
        self, component: str, size: tuple[int, int] | None = None, variant: str = PLAIN
    ) -> set[int]:
        """Return the batch sizes that a component has graphs for."""
        graphs = self.manifest.components[component].graphs
        fitting = [graph for graph in graphs if graph.size in (None, size)]
        return {graph.batch for graph in fitting if graph.variant == variant}

    def variants(self, component: str) -> set[str]:
        """Return the variants that a component has graphs of."""
        return {graph.variant for graph in self.manifest.components[component].graphs}

    def component_of(self, graph: GraphSpec) -> ComponentSpec:
        """Return the component that a graph belongs to: its folder is named after it."""
        return self.manifest.components[graph.file.partition("/")[0]]

    def gate(self, graph: GraphSpec, arithmetic: Arithmetic) -> float:
        """Return the largest L2 error of a graph that is computed in ``arithmetic``."""
        own = self.manifest.gates.get(graph.precision, graph.parity.gate)
        if arithmetic == graph.precision:
            return own
        return max(own, self.manifest.gates.get(arithmetic, GATES[arithmetic]))

    def content(self, graph: GraphSpec) -> str:
        """Return a hash of all that a graph is made of: its own files and its component's weights.

        Two graphs of one content compute the same; engines compiled from it are cached under it.
        """
        names = (*graph.files, self.component_of(graph).weights)
        hashes = [self.manifest.files[name].sha256 for name in names]
        return hashlib.sha256(" ".join(hashes).encode("ascii")).hexdigest()

    @cached_property
    def sha256(self) -> str:
        """The hash of the manifest, which holds the hashes of all other files."""
        return sha256_file(self.path / MANIFEST_NAME)

    @property
    def bytes_on_disk(self) -> int:
        """The size of all listed files together."""
        return sum(spec.size for spec in self.manifest.files.values())


@dataclass(frozen=True)
class Check:
    """One thing that was verified: a file's hash or a graph's golden vectors."""

    subject: str
    passed: bool
    detail: str


def verify(
    bundle: Bundle, device: str = "auto", options: EngineOptions | None = None
) -> Iterator[Check]:
    """Hash every file and run every golden vector on this machine, yielding each finding."""
    for relative in bundle.manifest.files:
        try:
            bundle.check_file(relative, sha256_file)
        except EdgeDiffusionError as error:
            yield Check(relative, False, str(error))
        else:
            yield Check(relative, True, "sha256")
    try:
        libraries_of(resolve_device(device))
    except DeviceError as error:  # one reason for all graphs, said once
        yield Check(f"device {device}", False, str(error))
        return
    options = options or EngineOptions()
    lean = replace(options, lean=True)
    for component in bundle.manifest.components.values():
        for graph in component.graphs:
            yield _check_golden(bundle, graph, component.golden, device, options)
            if graph.parts:
                yield _check_golden(bundle, graph, component.golden, device, lean)


def _check_golden(
    bundle: Bundle, graph: GraphSpec, golden: str, device: str, options: EngineOptions
) -> Check:
    subject = graph.file + (f" in {len(graph.parts)} parts" if options.lean else "")
    try:
        tensors = read_tensors(bundle.file(golden))
        with open_engine(graph, bundle.path, device, options, bundle.content(graph)) as engine:
            error = check_graph(engine, tensors)
    except EdgeDiffusionError as problem:
        return Check(subject, False, str(problem))
    gate = bundle.gate(graph, engine.arithmetic)
    how = f"{engine.device} in {engine.arithmetic}" + (f", {engine.note}" if engine.note else "")
    return Check(subject, error <= gate, f"L2 {error:.1e}, gate {gate:.0e}, {how}")


def find_bundle(name: str | os.PathLike[str] | None = None) -> Path:
    """Resolve an existing path, else the demo's name, else a name in the user's bundle folder."""
    if name is None or os.fspath(name) == "":
        name = DEMO
    path = Path(name)
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise BundleNotFound(f"{path} is a file, a bundle is a folder with a manifest.json in it")
    wanted = os.fspath(name)
    named = {folder.name: folder for folder in _named_bundles()}
    if wanted in named:
        return named[wanted]
    raise BundleNotFound(
        f"no bundle {wanted!r}: neither a folder nor a known name ({choices(wanted, named)}). "
        f"Named bundles live in {user_bundles()}"
    )


def user_bundles() -> Path:
    """Return the folder in which the user keeps bundles by name."""
    import platformdirs

    return Path(platformdirs.user_data_dir("edgediffusion", appauthor=False)) / "bundles"


def _named_bundles() -> Iterator[Path]:
    """The user's bundles, then the shipped ones, which win where names meet."""
    for home in (user_bundles(), _SHIPPED):
        yield from sorted(manifest.parent for manifest in home.glob(f"[!.]*/{MANIFEST_NAME}"))


def say_size(size: tuple[int, int]) -> str:
    """Write (height, width) the way ``--size`` takes it: ``HEIGHTxWIDTH``."""
    return f"{size[0]}x{size[1]}"


def parse_size(text: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH``, or one number for a square; raises RequestError."""
    match = re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text.strip())
    if not match:
        raise RequestError(f"size {text!r} is not HEIGHTxWIDTH in pixels, like 512x768")
    height, width = match[1], match[2] or match[1]
    return int(height), int(width)


def say_graph(graph: GraphSpec) -> str:
    """Name a graph by what tells it from its siblings."""
    size = f" at {say_size(graph.size)}" if graph.size else ""
    return f"batch {graph.batch}{size}" + ("" if graph.variant == PLAIN else f", {graph.variant}")
