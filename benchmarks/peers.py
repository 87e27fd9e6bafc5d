"""This engine and the programs that a user would pick instead, side by side in one run.

    python benchmarks/environments.py make
    python benchmarks/peers.py shapes --json benchmarks/results/MACHINE/peers_shapes.json

Every contender runs in its own environment and process. Contenders are interleaved round by round,
because on a shared machine two minutes are not comparable. The results file is written after each
round, so that an interrupted run can be read; see docs/benchmarks.md for what is timed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders.catalogue import CONTENDERS, Contender, find_contenders
from benchmarks.contenders.models import EXPORTERS, Files, NotMade
from benchmarks.contenders.protocol import Job
from benchmarks.contenders.report import Run
from benchmarks.contenders.rounds import Entry, Plan
from benchmarks.environments import (
    ENVIRONMENTS,
    default_home,
    find_environment,
    folder_mib,
    python_of,
)
from benchmarks.peers_table import peers_table
from benchmarks.workloads import SCHEDULER, WORKLOADS, Workload, find_workload
from edgediffusion import randn
from edgediffusion.errors import RequestError, choices

INTERRUPTED: Final = 130
TOKENS: Final = 77
TIMESTEP: Final = 500

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Show what is going on."""
    console.print(text, markup=False)


def write_inputs(workload: Workload, files: Files, folder: Path) -> Job:
    """Write what all contenders share; return the job, without a model."""
    checkpoint = files.folder("checkpoint")
    config = read_config(checkpoint / "scheduler" / "scheduler_config.json") | SCHEDULER
    (folder / "scheduler_config.json").write_bytes(msgspec.json.encode(config))
    np.save(folder / "latents.npy", randn(workload.latent_shape, seed=workload.seed))
    unet_inputs = folder / "unet_inputs.npz"
    write_unet_inputs(workload, checkpoint, unet_inputs)
    return Job(
        model=str(checkpoint),
        scheduler=str(folder / "scheduler_config.json"),
        latents=str(folder / "latents.npy"),
        prompt=workload.prompt,
        negative=workload.negative,
        guidance=workload.guidance,
        seed=workload.seed,
        size=workload.size,
        batch=workload.batch,
        unet_inputs=str(unet_inputs),
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read a file of a diffusers folder. Raises NotMade where it is not there or is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise NotMade(f"{path} cannot be read, expected a folder of diffusers: {error}") from error


def write_unet_inputs(workload: Workload, checkpoint: Path, path: Path) -> None:
    """Write the inputs of one UNet call with guidance: noise, and noise in the place of text.

    As guidance has it, all rows of text are for the same picture.
    """
    config = read_config(checkpoint / "unet" / "config.json")
    batch, *shape = workload.latent_shape
    sample = np.repeat(randn((1, *shape), seed=workload.seed), 2 * batch, axis=0)
    states = randn((2 * batch, TOKENS, config["cross_attention_dim"]), seed=workload.seed + 1)
    np.savez(path, sample=sample, timestep=TIMESTEP, states=states)


def make_ready(contender: Contender, job: Job, files: Files) -> Entry:
    """Find a contender's environment and files, made where they are missing."""
    installed = files.environments[contender.environment]
    if installed.reason is not None:
        return Entry(device=contender.device, reason=installed.reason)
    try:
        folder = files.folder(contender.files)
    except NotMade as error:
        return Entry(device=contender.device, reason=str(error))
    module = f"benchmarks.contenders.{contender.worker}"
    return Entry(
        command=(str(python_of(installed.folder)), "-m", module),
        job=replace(job, model=str(folder), options=contender.options),
        device=contender.device,
        note=contender.note,
        environment_mib=installed.mib,
        packages=installed.packages,
        disk_mib=folder_mib(folder),
    )


# --- the command line ----------------------------------------------------------------------------


def read_pairs(option: str, texts: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE options; raises RequestError for another form or name."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise RequestError(f"{option}: got {text!r}, expected NAME=VALUE")
        if name not in known:
            raise RequestError(f"{option}: unknown name {name!r}: {choices(name, known)}")
        pairs[name] = value
    return pairs


def read_counts(texts: Sequence[str], workload: Workload) -> dict[str, int]:
    """Read STAGE=N options; raises RequestError."""
    pairs = read_pairs("--count", texts, [*workload.stages, "cold_start"])
    for name, value in pairs.items():
        if not value.isdigit():
            raise RequestError(f"--count: got {name}={value}, expected a whole number of rounds")
    return {name: int(value) for name, value in pairs.items()}


def read_folders(texts: Sequence[str]) -> dict[str, Path]:
    """Read NAME=DIR options; raises RequestError."""
    pairs = read_pairs("--given", texts, ["checkpoint", *EXPORTERS])
    for name, value in pairs.items():
        if not Path(value).is_dir():
            raise RequestError(f"--given: {name}: there is no folder {value}")
    return {name: Path(value).resolve() for name, value in pairs.items()}


def plan_of(
    workload: Workload,
    *,
    rounds: int | None,
    counts: Sequence[str],
    warmup: int,
    resident: bool | None,
    limit: float | None,
) -> Plan:
    """The workload's own plan, with what the command line changes; raises RequestError."""
    return Plan(
        rounds=rounds or workload.rounds,
        stages=workload.stages,
        counts={**workload.counts, **read_counts(counts, workload)},
        warmup=warmup,
        resident=workload.resident if resident is None else resident,
        limit_s=limit or workload.limit_s,
        first_steps=workload.first_steps,
    )


def prepare(
    workload: Workload, contenders: Mapping[str, Contender], files: Files, inputs: Path
) -> dict[str, Entry]:
    """Write what all share, make what each needs. Raises NotMade without a checkpoint."""
    job = write_inputs(workload, files, inputs)
    return {name: make_ready(each, job, files) for name, each in contenders.items()}


def main(
    workload: Annotated[str, typer.Argument(help=f"One of: {', '.join(WORKLOADS)}.")],
    contender: Annotated[
        list[str] | None, typer.Option(help=f"One of: {', '.join(CONTENDERS)}; repeatable.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="The results file.")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Environments and exported models; default: the cache.")
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: a folder that is there already: checkpoint, bundle, ..."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in all.")] = None,
    count: Annotated[
        list[str] | None,
        typer.Option(help="STAGE=N: measure a stage in the first N rounds only; or cold_start."),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of a stage that are not kept.")] = 1,
    limit: Annotated[
        float | None, typer.Option(min=1, help="Seconds that one answer may take.")
    ] = None,
    resident: Annotated[
        bool | None,
        typer.Option("--resident/--restart", help="Keep all in memory, or one at a time."),
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Keep the first pictures here.")] = None,
) -> None:
    """Measure contenders on a workload; exit code 1 where none could be measured."""
    place = (home or default_home()).resolve()
    with ExitStack() as stack:
        scratch = pictures or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for folder in (scratch, json.parent if json else scratch):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            work, chosen = find_workload(workload), find_contenders(contender or ())
            plan = plan_of(work, rounds=rounds, counts=count or (), warmup=warmup,
                           resident=resident, limit=limit)  # fmt: skip
            environments = {name: find_environment(name, place) for name in ENVIRONMENTS}
            files = Files(work, place, environments, read_folders(given or ()), say)
            entries = prepare(work, chosen, files, scratch.resolve())
        except (RequestError, NotMade) as error:
            raise typer.BadParameter(str(error)) from error
        run = Run(workload, work, entries, plan, scratch.resolve(), json=json, say=say)
        report = run.measure()
    sys.stdout.write(peers_table(report) + "\n")
    if not report["complete"]:
        raise typer.Exit(INTERRUPTED)
    if not any(row["samples_ms"] for row in report["contenders"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
