"""The report of a run, written anew after each round: schema ``edgediffusion-peers/1``."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.contenders.anchor import Anchor
from benchmarks.contenders.catalogue import REFERENCE
from benchmarks.contenders.process import ROOT
from benchmarks.contenders.rounds import Entry, Plan, Rounds, Row, Say
from benchmarks.sameness import Picture, Work, compare, read_picture
from benchmarks.workloads import SCHEDULER, Workload
from edgediffusion.files import write_atomically
from edgediffusion.machine import machine_facts

SCHEMA: Final = "edgediffusion-peers/1"


def checked_out() -> str:
    """The commit that is checked out, with a + where the work tree differs from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
    commit: str = field(default_factory=checked_out)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def measure(self) -> dict[str, Any]:
        """Measure all rounds, or those before Ctrl-C; return the report."""
        rows = {name: Row(entry) for name, entry in self.entries.items()}
        for name in rows:  # what an earlier run left would pass for this one's
            (self.folder / f"{name}.npz").unlink(missing_ok=True)
        rounds = Rounds(rows, self.plan, self.anchor.sample, self.folder, say=self.say)
        with closing(rounds), suppress(KeyboardInterrupt):
            for _ in rounds.run():
                self.save(rounds)
        return self.save(rounds)

    def save(self, rounds: Rounds) -> dict[str, Any]:
        """Write the report as it stands and return it."""
        report = self.report(rounds)
        if self.json is not None:
            data = msgspec.json.format(msgspec.json.encode(report), indent=1)
            write_atomically(self.json, data + b"\n")
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
        return compare(made, pictures.get(self.reference), work, row.precision)
