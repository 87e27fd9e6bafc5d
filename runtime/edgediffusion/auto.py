"""The device ``auto``: what promises most on this CPU, proven on the graphs that it will run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edgediffusion.bundle import Bundle
from edgediffusion.cpu import computes_bf16, computes_int8
from edgediffusion.engine import Engine, EngineOptions, open_engine, resolve_device
from edgediffusion.engine_openvino import INSTALL, is_installed, is_offered
from edgediffusion.errors import DeviceError, EngineError
from edgediffusion.fingerprint import engine_facts, fingerprint, libraries_of
from edgediffusion.golden import check_graph, read_tensors
from edgediffusion.hashing import SELF_TESTS, recall, remember
from edgediffusion.manifest import GraphSpec


class Candidate(NamedTuple):
    """A device that ``auto`` tries, and why it has its place."""

    device: str
    why: str


@dataclass(frozen=True)
class Use:
    """A graph in use: on which device, in which arithmetic, and its error where it was proven."""

    device: str
    arithmetic: str
    error: float | None = None


def candidates() -> tuple[Candidate, ...]:
    """Return the devices that ``auto`` tries here, the most promising one first.

    docs/devices.md has the measurements behind this rule.
    """
    if not computes_bf16():
        return (Candidate("cpu", "without AMX nothing is reliably faster here"),)
    if is_installed():
        why = "OpenVINO computes in bf16 on this CPU's AMX"
        return (Candidate("openvino", why), Candidate("cpu", "it runs everywhere"))
    hint = f"; OpenVINO would be faster on its AMX: {INSTALL}" if is_offered() else ""
    return (Candidate("cpu", f"it is what works on this CPU{hint}"),)


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
    A device asked for by name never changes. Raises DeviceError for one that is not there.
    """

    def __init__(self, bundle: Bundle, device: str, options: EngineOptions) -> None:
        name = resolve_device(device)
        self._bundle = bundle
        self._options = options
        self._proves = device == "auto"
        if not self._proves:
            libraries_of(name)  # what is missing is said now, not at the first graph
        named = (Candidate(device, "asked for by name"),)
        offered = int8_candidates if bundle.manifest.precision == "int8" else candidates
        self._candidates = offered() if self._proves else named
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
        return "; ".join([*reasons, *self._passed_over.values()])

    def open(self, spec: GraphSpec) -> Engine:
        """Open a graph. Raises DeviceError or EngineError where no candidate can run it."""
        failures: dict[str, DeviceError | EngineError] = {}
        for device, _ in self._candidates:
            try:
                engine = self._open_on(device, spec)
            except (DeviceError, EngineError) as error:
                failures[device] = error
            else:
                self._keep(failures, spec)
                return engine
        raise _of_all(failures, spec)

    def _open_on(self, device: str, spec: GraphSpec) -> Engine:
        content = self._bundle.content(spec)
        engine = open_engine(spec, self._bundle.path, device, self._options, content)
        try:
            error = self._prove(engine) if self._proves else None
        except BaseException:
            engine.close()
            raise
        self._uses[spec.file] = Use(device, engine.arithmetic, error)
        return engine

    def _prove(self, engine: Engine) -> float:
        """Return the error of a graph's first golden vectors, remembered where it passed before."""
        spec = engine.spec
        gate = self._bundle.gate(spec, engine.arithmetic)
        golden = self._bundle.component_of(spec).golden
        facts = engine_facts(
            self._bundle.content(spec), engine.device, engine.arithmetic, self._options
        )
        key = fingerprint(facts | {"golden": self._bundle.manifest.files[golden].sha256})
        known = _remembered(key)
        if known <= gate:
            return known
        error = check_graph(engine, read_tensors(self._bundle.file(golden)), cases=1)
        if not error <= gate:
            raise EngineError(
                f"{spec.file} on device {engine.device!r} in {engine.arithmetic} misses its golden "
                f"vectors: L2 {error:.1e}, gate {gate:.0e}. See: edgediffusion verify --device "
                f"{engine.device}"
            )
        remember(SELF_TESTS, key, repr(error))
        return error

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
