"""What the harness and a contender's worker say to each other: JSON objects, one a line.

    {"op": "hello"}                              -> {"versions": {...}, "absent": {stage: reason}}
    {"op": "load", "job": {...}}                 -> {"ms": 812.5, "precision": "fp32"}
    {"op": "picture", "steps": 4, "path": "..."} -> {"ms": 95.1}
    {"op": "unet", "path": "..."}                -> {}
    {"op": "run", "stage": "unet_b1"}            -> {"ms": 8.3}
    {"op": "memory"}                             -> {"peak_mib": 512.0}
    {"op": "bye"}

What went wrong is an answer, too: ``{"error": "..."}``. A worker runs in its program's own
environment, so this file needs the standard library only (NumPy where a picture is saved).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, TextIO

PRESET_STEPS: Final = 20
"""The number of steps of a picture that is not in a hurry, which a preset replaces."""
RUNTIME: Final = Path(__file__).resolve().parents[2] / "runtime" / "edgediffusion"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one contender is to work on; the same for all but for ``model`` and ``options``.

    model : the folder of the files that this program reads (checkpoint, bundle, ...).
    scheduler : a scheduler_config.json of diffusers.
    latents : an .npy file of the first noise, float32 (batch, channels, height / 8, width / 8).
    size : (height, width) in pixels.
    unet_inputs : an .npz file of one UNet call with guidance, whose prediction is compared:
        ``sample`` (2 batch, channels, height / 8, width / 8), ``timestep``, ``states`` (2 batch,
        tokens, width). None compares nothing.
    options : what tells contenders of one program apart.
    """

    model: str
    scheduler: str
    latents: str
    prompt: str
    negative: str
    guidance: float
    seed: int
    size: tuple[int, int]
    batch: int
    unet_inputs: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hello:
    """Who a worker is: versions of what it runs, the stages it cannot show."""

    versions: Mapping[str, str]
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Something to time. Where one run makes several calls, a call's share is reported."""

    run: Callable[[], object]
    calls: int = 1


@dataclass(frozen=True)
class Loaded:
    """What is ready.

    stages : what can be timed by itself.
    precision : the arithmetic of the UNet: fp32, fp16 or bf16.
    unet : its prediction of (sample, timestep, states), with the engine that makes pictures; None
        where the program does not let it be called.
    """

    stages: Mapping[str, Stage]
    precision: str
    unet: Callable[[Any, int, Any], Any] | None = None


@dataclass(frozen=True)
class Made:
    """A picture and how it came about.

    pictures : uint8 array of shape (batch, height, width, 3).
    latents : float32 array, as the sampler left them, or None where the program keeps them.
    steps : the steps that the program was seen to make, not those it was asked for.
    """

    pictures: Any
    latents: Any
    steps: int


class Program(Protocol):
    """A contender, seen from its worker. Work is finished when a call returns."""

    def hello(self, options: Mapping[str, Any]) -> Hello:
        """Import the program; say who it is."""

    def load(self, job: Job) -> Loaded:
        """Make everything ready."""

    def picture(self, steps: int) -> Made:
        """Make the job's pictures in so many steps."""


def runtime_module(name: str) -> ModuleType:
    """Load a file of the runtime that needs the standard library only, by its path."""
    full_name = f"edgediffusion_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, RUNTIME / f"{name}.py")
        assert spec is not None, RUNTIME
        assert spec.loader is not None, RUNTIME
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[full_name]


def serve(program: Program) -> None:
    """Answer requests from standard input until ``bye`` or its end."""
    answers = own_stdout()
    worker = Worker(program)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "bye":
            return
        try:
            answer = worker.answer(request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": describe(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def own_stdout() -> TextIO:
    """Keep standard output for the protocol; what libraries print goes to standard error."""
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return kept


def describe(error: Exception) -> str:
    """The kind of an error and the last line that it says: C++ libraries put the reason there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


class Worker:
    """One program, asked to do one thing at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.loaded = Loaded({}, "")
        self.unet_inputs: str | None = None
        self.time_call = runtime_module("timing").time_call
        self.peak_memory_mib = runtime_module("machine").peak_memory_mib

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a request asks. Raises ValueError for one that is unknown."""
        match request["op"]:
            case "hello":
                said = self.program.hello(request["options"])
                return {"versions": dict(said.versions), "absent": dict(said.absent)}
            case "load":
                return self.load(Job(**request["job"] | {"size": tuple(request["job"]["size"])}))
            case "picture":
                return self.picture(request["steps"], request.get("path"))
            case "unet":
                return self.predict(Path(request["path"]))
            case "run":
                return self.run(request["stage"])
            case "memory":
                return {"peak_mib": self.peak_memory_mib()}
        raise ValueError(f"unknown op {request['op']!r}")

    def load(self, job: Job) -> dict[str, Any]:
        """Load the program's models, timed."""

        def load() -> None:
            self.loaded = self.program.load(job)

        self.unet_inputs = job.unet_inputs
        return {"ms": self.time_call(load), "precision": self.loaded.precision}

    def picture(self, steps: int, path: str | None) -> dict[str, Any]:
        """Make pictures, timed; save them and the latents, where a path is given."""
        made: list[Made] = []
        ms = self.time_call(lambda: made.append(self.program.picture(steps)))
        if path is not None:
            save(Path(path), made[0])
        return {"ms": ms}

    def predict(self, path: Path) -> dict[str, Any]:
        """Save the UNet's prediction of the job's inputs. Raises ValueError where it is hidden."""
        import numpy as np

        if self.loaded.unet is None or self.unet_inputs is None:
            raise ValueError("the program does not let its UNet be called")
        with np.load(self.unet_inputs) as given:
            inputs = given["sample"], int(given["timestep"]), given["states"]
        np.save(path, np.asarray(self.loaded.unet(*inputs), np.float32))
        return {}

    def run(self, name: str) -> dict[str, Any]:
        """Time one run of a stage."""
        stages = self.loaded.stages
        if name not in stages:
            raise ValueError(f"no stage {name!r}, there are {', '.join(stages)}")
        stage = stages[name]
        return {"ms": self.time_call(stage.run) / stage.calls}


def save(path: Path, made: Made) -> None:
    """Write pictures, latents and the number of steps as .npz."""
    import numpy as np

    latents = {} if made.latents is None else {"latents": np.asarray(made.latents, np.float32)}
    np.savez(path, pictures=np.asarray(made.pictures), steps=made.steps, **latents)
