"""The report of a run, written anew after each round: schema ``edgediffusion-peers/1``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.contenders.catalogue import REFERENCE
from benchmarks.contenders.rounds import Entry, Plan, Rounds, Row, Say
from benchmarks.reports import commit, write_report
from benchmarks.sameness import (
    Picture,
    Work,
    compare,
    prediction_flags,
    prediction_l2,
    read_picture,
)
from benchmarks.workloads import SCHEDULER, Workload
from edgediffusion.anchor import Anchor
from edgediffusion.machine import machine_facts

SCHEMA: Final = "edgediffusion-peers/1"


@dataclass
class Run:
    """One run of a workload: what it is, and the report that it has so far.

    json : where the report is written after each round, if anywhere.
    folder : for inputs and pictures.
    """

    name: str
    workload: Workload
    entries: Mapping[str, Entry]
    plan: Plan
    folder: Path
    json: Path | None = None
    reference: str = REFERENCE
    say: Say = lambda text: None
    anchor: Anchor = field(default_factory=Anchor)
    machine: dict[str, Any] = field(default_factory=machine_facts)
    commit: str = field(default_factory=lambda: commit() or "unknown")
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def measure(self) -> dict[str, Any]:
        """Measure all rounds, or those before Ctrl-C; return the report."""
        rows = {name: Row(entry) for name, entry in self.entries.items()}
        for name in rows:  # what an earlier run left would pass for this one's
            for old in (f"{name}.npz", f"{name}.unet.npy"):
                (self.folder / old).unlink(missing_ok=True)
        rounds = Rounds(rows, self.plan, self.anchor.sample, self.folder, say=self.say)
        with closing(rounds), suppress(KeyboardInterrupt):
            for _ in rounds.run():
                self.save(rounds)
        return self.save(rounds)

    def save(self, rounds: Rounds) -> dict[str, Any]:
        """Write the report as it stands and return it."""
        report = self.report(rounds)
        if self.json is not None:
            write_report(self.json, report)
        return report

    def report(self, rounds: Rounds) -> dict[str, Any]:
        """Everything that is known so far, as JSON-ready data."""
        count = len(rounds.anchor_ms)
        pictures = {name: self.picture(name) for name in rounds.rows}
        return {
            "schema": SCHEMA,
            "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
            "started": self.started,
            "commit": self.commit,
            "machine": self.machine,
            "workload": {"name": self.name} | asdict(self.workload) | {"scheduler": SCHEDULER},
            "plan": asdict(self.plan),
            "rounds": count,
            "complete": rounds.complete,
            "reference": self.reference,
            "anchor": {"identity": self.anchor.identity, "samples_ms": rounds.anchor_ms},
            "contenders": {
                name: row.facts(count) | {"sameness": self.sameness(row, pictures, name)}
                for name, row in rounds.rows.items()
            },
        }

    def picture(self, name: str) -> Picture | None:
        """The first picture of a contender, if it made one."""
        try:
            return read_picture(self.folder / f"{name}.npz")
        except (OSError, ValueError, KeyError):
            return None

    def sameness(
        self, row: Row, pictures: Mapping[str, Picture | None], name: str
    ) -> dict[str, Any] | None:
        """How near a contender's first picture is to the reference's."""
        made = pictures[name]
        if made is None or row.precision is None:
            return None
        work = Work(self.workload.size, self.workload.batch, self.plan.first_steps)
        said = compare(made, pictures.get(self.reference), work, row.precision)
        unet_l2 = prediction_l2(self.prediction(name), self.prediction(self.reference))
        flags = [*said["flags"], *prediction_flags(unet_l2, row.precision)]
        return said | {"unet_l2": unet_l2, "flags": flags}

    def prediction(self, name: str) -> Any:
        """What a contender's UNet made of the inputs that all get; None where it is hidden."""
        path = self.folder / f"{name}.unet.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            return None
