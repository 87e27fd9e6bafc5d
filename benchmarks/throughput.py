"""Pictures a second against the batch size, and against streams that run at the same time.

    python benchmarks/throughput.py BUNDLE --json benchmarks/results/MACHINE/throughput.json

A batch is one request for several pictures. Streams are threads with a pipeline of their own each,
which share the machine's cores. All of them are measured round by round; what the machine tells of
energy and of its GPUs is kept beside the times, else the report says why it is absent.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.energy import Counters, find_counters
from benchmarks.gpu_use import gpu_use
from benchmarks.paired import Estimate, estimate, ratios
from benchmarks.reports import Report, bundle_facts, head, markdown, said_errors, write_report
from edgediffusion.errors import RequestError
from edgediffusion.rounds import measure
from edgediffusion.timing import summarize

SCHEMA: Final = "edgediffusion-throughput/1"
PROMPT: Final = "a red circle above a blue square"
KINDS: Final = ("batch", "streams")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure and how often.

    threads : threads of each graph; 0 shares the cores among the streams.
    per_stream : pictures that each stream makes in one round.
    """

    device: str = "auto"
    batch: tuple[int, ...] = (1, 2, 4)
    streams: tuple[int, ...] = (1, 2, 4)
    steps: int = 4
    rounds: int = 8
    threads: int = 0
    per_stream: int = 2

    def __post_init__(self) -> None:
        counts = {"steps": self.steps, "rounds": self.rounds, "per_stream": self.per_stream}
        counts |= {kind: min(getattr(self, kind), default=1) for kind in KINDS}
        for name, value in counts.items():
            if value < 1:
                raise RequestError(f"{name} must be at least 1, got {value}")

    def threads_of(self, streams: int) -> int:
        """Threads of a graph where that many streams run."""
        return self.threads or max(1, (os.cpu_count() or 1) // streams)


@dataclass
class Metered:
    """A call that makes ``pictures``, and what each call took besides time."""

    run: Callable[[], object]
    pictures: int
    counters: Counters
    joules: list[dict[str, float]] = field(default_factory=list)
    gpu_percent: list[float | None] = field(default_factory=list)
    gpu_absent: str | None = None

    def __call__(self) -> None:
        """Run, and keep the energy and the use of the GPUs."""
        before = self.counters.read()
        with gpu_use() as use:
            self.run()
        self.joules.append(self.counters.since(before))
        self.gpu_percent.append(use.percent)
        self.gpu_absent = use.absent

    def facts(self, samples: list[float]) -> dict[str, Any]:
        """The samples of whole rounds; the first call only warmed up."""
        measured = slice(1, 1 + len(samples))
        return {
            "pictures": self.pictures,
            "samples_ms": samples,
            "joules": self.joules[measured],
            "gpu_percent": self.gpu_percent[measured],
        }


def throughput(
    bundle: str | os.PathLike[str] | None,
    options: Options,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure all batch sizes and numbers of streams in turns; return raw samples."""
    report, counters = head(SCHEMA), find_counters()
    with ExitStack() as stack:
        open_pipe = partial(_opened, stack, bundle, options)
        pipe = open_pipe(1)
        workloads: dict[str, Metered] = {}
        for batch in options.batch:
            run = partial(_pictures, pipe, options.steps, batch)
            workloads[f"batch {batch}"] = Metered(run, batch, counters)
        for count in options.streams:
            pipes = [open_pipe(count) for _ in range(count)]
            run = partial(_streams, pipes, options)
            workloads[f"streams {count}"] = Metered(run, count * options.per_stream, counters)
        samples = measure(workloads, options.rounds, on_progress)
        opened, device = pipe.bundle, pipe.device
    gpu_absent = next((each.gpu_absent for each in workloads.values() if each.gpu_absent), None)
    report |= bundle_facts(opened)
    return report | {
        "options": asdict(options) | {"device": device},
        "absent": dict(counters.absent) | ({"GPU use": gpu_absent} if gpu_absent else {}),
        "workloads": {name: each.facts(samples[name]) for name, each in workloads.items()},
    }


def _opened(
    stack: ExitStack, bundle: str | os.PathLike[str] | None, options: Options, streams: int
) -> ed.Pipeline:
    threads = options.threads_of(streams)
    return stack.enter_context(ed.Pipeline.open(bundle, device=options.device, threads=threads))


def _pictures(pipe: ed.Pipeline, steps: int, batch: int) -> object:
    return pipe.generate(ed.Request(prompt=PROMPT, steps=steps, seed=0, batch=batch))


def _streams(pipes: list[ed.Pipeline], options: Options) -> object:
    def stream(pipe: ed.Pipeline) -> None:
        for _ in range(options.per_stream):
            _pictures(pipe, options.steps, 1)

    with ThreadPoolExecutor(len(pipes)) as pool:
        return list(pool.map(stream, pipes))


def pictures_per_second(report: Report, name: str) -> Estimate:
    """Estimate the rate of a workload."""
    facts = report["workloads"][name]
    return estimate([1e3 * facts["pictures"] / ms for ms in facts["samples_ms"]])


def gain(report: Report, name: str) -> Estimate:
    """Estimate the rate over that of one picture, or one stream, at a time, round by round."""
    facts = report["workloads"]
    first = next(each for each in facts if each.split()[0] == name.split()[0])
    scale = facts[name]["pictures"] / facts[first]["pictures"]
    pairs = ratios(facts[first]["samples_ms"], facts[name]["samples_ms"])
    return estimate([scale * ratio for ratio in pairs])


def throughput_table(report: Report) -> str:
    """The report as Markdown, with what is absent below."""
    rows = []
    for name, facts in report["workloads"].items():
        rows.append(
            [name, str(pictures_per_second(report, name)), str(gain(report, name)),
             _mean([sum(each.values()) / facts["pictures"] for each in facts["joules"] if each]),
             _mean([each for each in facts["gpu_percent"] if each is not None])]
        )  # fmt: skip
    columns = ["", "pictures a second", "over the first", "joules a picture", "GPU use, %"]
    notes = [f"Absent: {name} ({reason})." for name, reason in report["absent"].items()]
    return "\n\n".join([markdown(columns, rows), *notes])


def _mean(samples: list[float]) -> str:
    return f"{summarize(samples).median:.3g}" if samples else "absent"


def _counts(name: str, text: str) -> tuple[int, ...]:
    """Read ``1,2,4``; raises RequestError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise RequestError(f"got {name} {text!r}, expected numbers like 1,2,4") from None


@said_errors()
def main(
    bundle: Annotated[str | None, typer.Argument(help="Folder or name; default: the demo.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write raw samples here.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4",
    streams: Annotated[str, typer.Option(help="Numbers of streams.")] = "1,2,4",
    steps: Annotated[int, typer.Option(help="Sampler steps of a picture.")] = 4,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 8,
    device: Annotated[str, typer.Option(help="What runs the graphs.")] = "auto",
    threads: Annotated[int, typer.Option(help="Threads per graph; 0: shared by streams.")] = 0,
) -> None:
    """Measure pictures a second against batch size and streams."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    options = Options(
        batch=_counts("--batch", batch),
        streams=_counts("--streams", streams),
        steps=steps,
        rounds=rounds,
        device=device,
        threads=threads,
    )
    with console.status("opening the bundle") as status:
        report = throughput(bundle, options, status.update)
    if json is not None:
        write_report(json, report)
    sys.stdout.write(throughput_table(report) + "\n")


if __name__ == "__main__":
    typer.run(main)
