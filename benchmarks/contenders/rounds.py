"""Measure contenders side by side, round by round, and keep whatever could be measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.contenders.process import Process, Refused, WorkerLost
from benchmarks.contenders.protocol import Job
from benchmarks.sameness import GATES
from edgediffusion.rounds import rotated
from edgediffusion.timing import time_call

Sample = float | None
Say = Callable[[str], None]

END_TO_END: Final = "end_to_end_"
PREDICTION: Final = "prediction to compare"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender that is ready to be started, or the reason why it is not."""

    command: Sequence[str] = ()
    job: Job | None = None
    reason: str | None = None
    device: str = "cpu"
    note: str = ""
    environment_mib: float | None = None
    packages: int | None = None
    disk_mib: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How often what is measured.

    counts : rounds in which a stage is measured, the first ones; others in every round. So also
        ``cold_start``, which without ``resident`` happens in every round anyway.
    warmup : runs of a stage that are not kept, after every start.
    resident : processes stay from round to round.
    limit_s : how long one answer may take.
    first_steps : steps of a cold start's first picture.
    """

    rounds: int
    stages: Sequence[str]
    counts: Mapping[str, int] = field(default_factory=dict)
    warmup: int = 1
    resident: bool = False
    limit_s: float = 600.0
    first_steps: int = 4

    def wants(self, what: str, index: int) -> bool:
        """Whether something is measured in the round of this 0-based index."""
        return index < self.counts.get(what, self.rounds)


@dataclass
class Row:
    """Everything that is known about one contender; ``facts`` is its part of the report."""

    entry: Entry
    status: str = "ok"
    reason: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    precision: str | None = None
    peak_memory_mib: float | None = None
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.entry.reason is not None:
            self.status, self.reason = "unavailable", self.entry.reason

    @property
    def runs(self) -> bool:
        """Whether it is worth asking for more."""
        return self.reason is None

    def greet(self, hello: Mapping[str, Any]) -> None:
        """Keep what a worker says about itself. Raises WorkerLost for something else."""
        versions, absent = hello.get("versions"), hello.get("absent")
        if not (isinstance(versions, dict) and isinstance(absent, dict)):
            raise WorkerLost(f"printed rubbish for a greeting: {str(hello)[:80]}")
        self.versions = versions
        self.absent |= absent

    def load(self, answer: Mapping[str, Any], index: int) -> None:
        """Keep how long loading took, and the arithmetic. Raises WorkerLost for something else."""
        self.put("load", index, ms_of(answer))
        if answer.get("precision") not in GATES:
            raise WorkerLost(f"printed rubbish: an arithmetic wanted, got {str(answer)[:80]}")
        self.precision = answer["precision"]

    def put(self, name: str, index: int, ms: float) -> None:
        """Keep a sample of the round of this index."""
        samples = self.samples.setdefault(name, [])
        samples += [None] * (index + 1 - len(samples))
        samples[index] = ms

    def give_up(self, reason: str) -> None:
        """Note why there will be no more samples."""
        self.status = "partial" if self.samples.keys() - {"load"} else "failed"
        self.reason = reason

    def refuse(self, stage: str, reason: str) -> None:
        """Note why one stage has no samples."""
        self.absent[stage], self.status = reason, "partial"

    def facts(self, rounds: int) -> dict[str, Any]:
        """The row as JSON-ready data, with every list as long as there were rounds."""
        filled = {
            name: samples + [None] * (rounds - len(samples))
            for name, samples in self.samples.items()
        }
        return {
            "status": self.status,
            "reason": self.reason,
            "versions": self.versions,
            "device": self.entry.device,
            "note": self.entry.note,
            "precision": self.precision,
            "environment_mib": self.entry.environment_mib,
            "packages": self.entry.packages,
            "disk_mib": self.entry.disk_mib,
            "peak_memory_mib": self.peak_memory_mib,
            "load_ms": filled.pop("load", [None] * rounds),
            "cold_start_ms": filled.pop("cold_start", [None] * rounds),
            "samples_ms": filled,
            "absent": self.absent,
        }


@dataclass
class Rounds:
    """The measuring itself. Use it in a ``with`` of `closing`; ``close`` ends all processes.

    anchor : a fixed piece of work in milliseconds, sampled at every turn of every round.
    folder : where the first pictures are saved, as ``NAME.npz``.
    """

    rows: Mapping[str, Row]
    plan: Plan
    anchor: Callable[[], float]
    folder: Path
    say: Say = lambda text: None
    anchor_ms: list[float] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)
    warm: dict[str, set[str]] = field(default_factory=dict)
    complete: bool = False

    def run(self) -> Iterator[int]:
        """Measure; yield the number of finished rounds after each."""
        for index in range(self.plan.rounds):
            turns = [self.anchor()]
            try:
                for name in rotated(list(self.rows), index):
                    if self.rows[name].runs:
                        self.turn(name, index)
                        turns.append(self.anchor())
            finally:
                self.anchor_ms.append(median(turns))
            self.complete = index + 1 == self.plan.rounds
            yield index + 1

    def turn(self, name: str, index: int) -> None:
        """One contender's part of one round; what goes wrong goes into its row."""
        row = self.rows[name]
        try:
            if name not in self.processes or self.plan.wants("cold_start", index):
                self.start(name, index)
            for stage in self.plan.stages:
                if self.plan.wants(stage, index) and stage not in row.absent:
                    self.measure(name, stage, index)
        except WorkerLost as error:
            row.give_up(str(error))
        if not self.plan.resident or not row.runs:
            self.end(name)

    def start(self, name: str, index: int) -> None:
        """Start a process anew, up to its first picture. Raises WorkerLost."""
        self.end(name)
        row, limit = self.rows[name], self.plan.limit_s
        picture = self.folder / f"{name}.npz"
        self.say(f"round {index + 1} of {self.plan.rounds}: {name}: cold start")

        def first_picture() -> None:
            self.processes[name] = process = Process(row.entry.command)
            assert row.entry.job is not None
            row.greet(process.ask("hello", limit, options=dict(row.entry.job.options)))
            row.load(process.ask("load", limit, job=asdict(row.entry.job)), index)
            process.ask("picture", limit, steps=self.plan.first_steps, path=str(picture))

        try:
            row.put("cold_start", index, time_call(first_picture))
            peak = self.processes[name].ask("memory", limit).get("peak_mib")
        except Refused as error:
            raise WorkerLost(f"made no picture: {error}") from error
        if peak is not None:
            row.peak_memory_mib = max(peak, row.peak_memory_mib or 0)
        self.warm[name] = set()
        self.predict(name)

    def predict(self, name: str) -> None:
        """Let a contender's UNet predict once, for the comparison. Raises WorkerLost."""
        row, path = self.rows[name], self.folder / f"{name}.unet.npy"
        assert row.entry.job is not None
        if row.entry.job.unet_inputs is None or PREDICTION in row.absent or path.exists():
            return
        try:
            self.processes[name].ask("unet", self.plan.limit_s, path=str(path))
        except Refused as error:
            row.absent[PREDICTION] = str(error)

    def measure(self, name: str, stage: str, index: int) -> None:
        """Take one sample of a stage, warmed up where the process is new."""
        self.say(f"round {index + 1} of {self.plan.rounds}: {name}: {stage}")
        row, process, request = self.rows[name], self.processes[name], request_for(stage)
        # The first picture has warmed up whole ones of any number of steps.
        warm = stage in self.warm[name] or request["op"] == "picture"
        try:
            for _ in range(0 if warm else self.plan.warmup):
                process.ask(limit_s=self.plan.limit_s, **request)
            ms = ms_of(process.ask(limit_s=self.plan.limit_s, **request))
        except Refused as error:
            row.refuse(stage, str(error))
        else:
            self.warm[name].add(stage)
            row.put(stage, index, ms)

    def end(self, name: str) -> None:
        """End the process of a contender, if there is one."""
        if name in self.processes:
            self.processes.pop(name).close()

    def close(self) -> None:
        """End all processes."""
        for name in list(self.processes):
            self.end(name)


def request_for(stage: str) -> dict[str, Any]:
    """The request whose answer is a sample of a stage."""
    if stage.startswith(END_TO_END):
        return {"op": "picture", "steps": int(stage.removeprefix(END_TO_END))}
    return {"op": "run", "stage": stage}


def ms_of(answer: Mapping[str, Any]) -> float:
    """The milliseconds in an answer. Raises WorkerLost where there are none."""
    ms = answer.get("ms")
    if not isinstance(ms, int | float) or not 0 <= ms < math.inf:
        raise WorkerLost(f"printed rubbish: milliseconds wanted, got {str(answer)[:80]}")
    return float(ms)
