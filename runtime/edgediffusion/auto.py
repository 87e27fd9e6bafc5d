"""The device ``auto``: what promises most on this machine, proven on the graphs it will run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from edgediffusion.bundle import Bundle
from edgediffusion.cpu import computes_bf16, computes_int8
from edgediffusion.cuda_provider import is_installed as has_cuda
from edgediffusion.cuda_provider import require_cuda
from edgediffusion.engine import Engine, EngineOptions, open_engine, resolve_device
from edgediffusion.engine_openvino import install_command, is_installed
from edgediffusion.errors import DeviceError, EngineError, RequestError
from edgediffusion.fingerprint import engine_facts, fingerprint, libraries_of
from edgediffusion.golden import check_graph, read_tensors
from edgediffusion.hashing import SELF_TESTS, recall, remember
from edgediffusion.manifest import GraphSpec, Manifest, sparing
from edgediffusion.tensorrt_library import promising

COMPILERS: Final = ("tensorrt", "tensorrt-rtx")
"""Devices that build their own kernels on the machine, so that a test elsewhere proves little."""


class Candidate(NamedTuple):
    """A device that ``auto`` tries, and why it has its place."""

    device: str
    why: str


@dataclass(frozen=True)
class Use:
    """A graph in use: on which device, in which arithmetic, and its error where it was proven.

    note : what the engine notes of itself.
    """

    device: str
    arithmetic: str
    error: float | None = None
    note: str | None = None


def candidates() -> tuple[Candidate, ...]:
    """Return the devices that ``auto`` tries here, the most promising one first.

    A GPU that works comes first; one that does not is passed over, and the reason is kept.
    """
    first, *rest = _on_the_cpu()
    if not has_cuda():
        return (first, *rest)
    try:
        gpu = require_cuda()
    except DeviceError as error:
        return (first._replace(why=f"{first.why}; {error}"), *rest)
    return (Candidate("cuda", f"there is an {gpu.name} with its libraries"), first, *rest)


def _on_the_cpu() -> tuple[Candidate, ...]:
    """docs/devices.md has the measurements behind this rule."""
    if not computes_bf16():
        return (Candidate("cpu", "without fast bf16 nothing is reliably faster here"),)
    if is_installed():
        why = "OpenVINO computes in bf16 on this CPU, which is fast"
        return (Candidate("openvino", why), Candidate("cpu", "it runs everywhere"))
    hint = f"OpenVINO would be faster with its bf16: {install_command()}"
    return (Candidate("cpu", f"it is what works on this CPU; {hint}"),)


def int8_candidates() -> tuple[Candidate, ...]:
    """Return the devices that ``auto`` tries for int8 bundles, and what else would do here.

    ``cpu`` computes every kind of them in integers; OpenVINO is no faster where it was measured.
    """
    why = "it computes int8 bundles with the CPU's integer dot products"
    if computes_bf16():
        why = "it computes int8 bundles; OpenVINO in bf16 may be as fast here with an fp32 bundle"
    elif not computes_int8():
        why = "it computes int8 bundles, but without VNNI an fp32 bundle may be as fast here"
    return (Candidate("cpu", why),)


class Chooser:
    """Opens the graphs of a bundle on the device asked for, or on the best that proves itself.

    With ``auto``, each graph runs its first golden vectors before it is used. A device that does
    not load it, or that misses the gate, is passed over for the next one, and the reason is kept.
    A device asked for by name never changes; of these, only compilers are proven. Raises
    DeviceError for one that is not there.
    """

    def __init__(
        self, bundle: Bundle, device: str, options: EngineOptions, limited: bool = False
    ) -> None:
        """Check the device; ``limited``: memory is, by an estimate that is made for ``cpu``."""
        if limited and device not in ("auto", "cpu"):
            raise RequestError(
                f"max_memory is known for device 'cpu' only, got {device!r}: leave one of them out"
            )
        self._bundle = bundle
        self._options = options
        self._limited = limited
        self._proves = device == "auto" or device in COMPILERS
        if device != "auto":
            libraries_of(resolve_device(device))  # what is missing is said now, not at a graph
        self._candidates = _candidates_for(device, bundle.manifest, limited)
        self._uses: dict[str, Use] = {}
        self._passed_over: dict[str, str] = {}

    @property
    def device(self) -> str:
        """The device of the graphs so far, or the likely one; several are joined: ``cpu+x``."""
        used = {use.device for use in self._uses.values()}
        return "+".join(sorted(used)) or self._candidates[0].device

    @property
    def arithmetic(self) -> str:
        """The arithmetic of the graphs so far, joined like the devices; empty before the first."""
        return "+".join(sorted({use.arithmetic for use in self._uses.values()}))

    @property
    def reason(self) -> str:
        """Why it is this device, in one line."""
        reasons = [self._candidates[0].why]
        if errors := [use.error for use in self._uses.values() if use.error is not None]:
            graphs = "1 graph" if len(errors) == 1 else f"{len(errors)} graphs"
            reasons.append(f"{graphs} proven, worst L2 {max(errors):.1e}")
        notes = [f"{file} {use.note}" for file, use in self._uses.items() if use.note]
        return "; ".join([*reasons, *self._passed_over.values(), *notes])

    def open(self, spec: GraphSpec, lean: bool = False) -> Engine:
        """Open a graph. Raises DeviceError or EngineError where no candidate can run it.

        lean : spend time to save memory, as `EngineOptions` says.
        """
        options = replace(self._options, lean=lean or self._options.lean)
        if options.lean or self._limited:  # the weights of rewritten graphs take more memory
            spec = sparing(spec)
        failures: dict[str, DeviceError | EngineError] = {}
        for device, _ in self._candidates:
            try:
                engine = self._open_on(device, spec, options)
            except (DeviceError, EngineError) as error:
                failures[device] = error
            else:
                self._keep(failures, spec)
                return engine
        raise _of_all(failures, spec)

    def _open_on(self, device: str, spec: GraphSpec, options: EngineOptions) -> Engine:
        content = self._bundle.content(spec)
        engine = open_engine(spec, self._bundle.path, device, options, content)
        try:
            error = self._prove(engine, options) if self._proves else None
        except BaseException:
            engine.close()
            raise
        self._uses[spec.file] = Use(device, engine.arithmetic, error, engine.note)
        return engine

    def _prove(self, engine: Engine, options: EngineOptions) -> float:
        """Return a graph's error on its golden vectors; remembered for a build that passed."""
        spec = engine.spec
        gate = self._bundle.gate(spec, engine.arithmetic)
        golden = self._bundle.component_of(spec).golden
        facts = engine_facts(self._bundle.content(spec), engine.device, engine.arithmetic, options)
        facts["golden"] = self._bundle.manifest.files[golden].sha256
        facts["parts"] = str(len(spec.parts) if options.lean else 0)
        key = None if engine.build is None else fingerprint(facts | {"build": engine.build})
        known = float("inf") if key is None else _remembered(key)
        if known <= gate:
            return known
        error = check_graph(engine, read_tensors(self._bundle.file(golden)), cases=1)
        if not error <= gate:
            raise EngineError(
                f"{spec.file} on device {engine.device!r} in {engine.arithmetic} misses its golden "
                f"vectors: L2 {error:.1e}, gate {gate:.0e}. See: edgediffusion verify --device "
                f"{engine.device}{self._name_the_layer(engine)}"
            )
        if key is not None:
            remember(SELF_TESTS, key, repr(error))
        return error

    def _name_the_layer(self, engine: Engine) -> str:
        """How to find the layer that a compiler computes otherwise; empty for other devices."""
        if engine.device not in COMPILERS:
            return ""
        rtx = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if engine.device == "tensorrt-rtx" else ""
        return (
            f". This names the layer (docs/tensorrt.md has inputs.py, and more): {rtx}polygraphy "
            f"run {self._bundle.file(engine.spec.file)} --onnxrt --trt --strongly-typed "
            '--onnx-outputs "*" --trt-outputs "*" --validate --fail-fast --data-loader-script '
            "inputs.py"
        )

    def _keep(self, failures: Mapping[str, Exception], spec: GraphSpec) -> None:
        for device, error in failures.items():
            why = str(error).splitlines()[0]
            self._passed_over[device] = f"{device} was passed over for {spec.file}: {why}"


def _remembered(key: str) -> float:
    """Return the error that passed before; infinity where nothing usable is remembered."""
    try:
        return float(recall(SELF_TESTS)[key])
    except (KeyError, ValueError):
        return float("inf")


def _of_all(
    failures: Mapping[str, DeviceError | EngineError], spec: GraphSpec
) -> DeviceError | EngineError:
    if len(failures) == 1:
        return next(iter(failures.values()))
    listed = "\n  ".join(f"{device}: {error}" for device, error in failures.items())
    return EngineError(f"{spec.file} runs on no device that auto tries here:\n  {listed}")


def _candidates_for(device: str, manifest: Manifest, limited: bool) -> tuple[Candidate, ...]:
    if device != "auto":
        return (Candidate(device, "asked for by name"),)
    if limited:
        return (Candidate("cpu", "its memory is known, for max_memory"),)
    if manifest.precision == "int8":
        return int8_candidates()
    gpus = (Candidate(*each) for each in promising(manifest))
    return (*gpus, *candidates())
