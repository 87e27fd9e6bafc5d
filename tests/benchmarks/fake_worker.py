"""A contender that does as it is told: known delays, crashes, hangs, rubbish, other work.

Options, all of them optional:

at, fault : where something goes wrong (hello, load, picture, run), and what: crash, hang, error,
    or a line of rubbish to print in place of an answer.
delay_ms, calls : how long a run of a stage takes, and how many calls it counts for.
wrong : other work: steps, size, batch, flat, latents, unet; or a UNet that is hidden.
precision : the arithmetic that it says it has.
absent : stages that it cannot show.
log, name : a file that gets a line with the name and the op for everything that is done.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.protocol import Hello, Job, Loaded, Made, Stage, serve


@dataclass
class Fake:
    """See above; ``answers`` is a second handle of the stream that answers go to."""

    answers: int
    options: Mapping[str, Any] = field(default_factory=dict)
    job: Job = field(init=False)

    def hello(self, options: Mapping[str, Any]) -> Hello:
        print("libraries chatter on standard output")
        self.options = options
        self.note("hello")
        return Hello({"fake": "1.0"}, dict.fromkeys(options.get("absent", ()), "hidden"))

    def load(self, job: Job) -> Loaded:
        self.job = job
        self.note("load")
        calls = job.options.get("calls", 1)
        names = ("unet_b1", "unet_b2")
        stages = {name: Stage(partial(self.work, name), calls) for name in names}
        hidden = job.options.get("wrong") == "hidden"
        return Loaded(stages, job.options.get("precision", "fp32"), None if hidden else self.unet)

    def unet(self, sample: Any, timestep: int, states: Any) -> Any:
        self.note("unet")
        wrong = self.options.get("wrong") == "unet"
        return sample * (2 if wrong else 1) + timestep * 1e-3 * states.mean()

    def work(self, stage: str) -> None:
        self.note("run")
        time.sleep(self.options.get("delay_ms", 0) / 1e3)

    def picture(self, steps: int) -> Made:
        self.note("picture")
        wrong, (height, width), batch = self.options.get("wrong"), self.job.size, self.job.batch
        shape = (batch // (1 + (wrong == "batch")), height * (1 + (wrong == "size")), width, 3)
        latents = np.load(self.job.latents)
        pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        if wrong == "latents":
            latents, pictures = -latents, 255 - pictures
        if wrong == "flat":
            pictures[:] = 127
        return Made(pictures, latents, steps - (wrong == "steps"))

    def note(self, op: str) -> None:
        """Write the log; do what goes wrong here."""
        if "log" in self.options:
            with Path(self.options["log"]).open("a", encoding="utf-8") as log:
                log.write(f"{self.options['name']} {op}\n")
        if op == self.options.get("at"):
            self.fail(self.options["fault"])

    def fail(self, fault: str) -> None:
        if fault == "crash":
            sys.stderr.write("Traceback\nFakeError: out of luck\n")
            sys.stderr.flush()
            os._exit(3)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "error":
            raise RuntimeError("a first line\ncannot do that\n")
        else:
            os.write(self.answers, f"{fault}\n".encode())


if __name__ == "__main__":
    serve(Fake(os.dup(1)))
