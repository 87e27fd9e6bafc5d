"""Real size, once: export a checkpoint of Stable Diffusion 1.5's architecture, run it, compare.

    python benchmarks/full_size.py all --work DIR --json benchmarks/results/MACHINE/full_size.json

Every stage runs in a process of its own, so that its peak memory is its own. A stage whose output
is already in DIR is not run again; delete the output to repeat it. Needs about 12 GB of disk and
14 GB of memory, some minutes, and the ``export`` extra.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.sameness import psnr_db
from edgediffusion.golden import relative_l2
from edgediffusion.machine import machine_facts

PROMPT: Final = "a photograph of an astronaut riding a horse"
STEPS: Final = 2
GUIDANCE: Final = 7.5
SEED: Final = 7
SIZE: Final = "512x512"
SCHEMA: Final = "edgediffusion-full-size/1"

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Stage:
    """What one process took."""

    seconds: float
    peak_memory_mib: float


@app.command("all")
def run_all(
    work: Annotated[Path, typer.Option(help="Where the checkpoint and the bundle go.")],
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of the step latency.")] = 5,
) -> None:
    """Run every stage and print the figures."""
    figures = measure(work, rounds)
    text = msgspec.json.format(msgspec.json.encode(figures), indent=1)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_bytes(text + b"\n")
    sys.stdout.write(text.decode() + "\n")


def measure(work: Path, rounds: int = 5) -> dict[str, Any]:
    """Run what is not there yet; return all figures as JSON-ready data."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, bundle = work / "checkpoint", work / "bundle"
    here = Path(__file__).parent
    stages_file = work / "stages.json"
    stages = _read_stages(stages_file)

    def stage(name: str, output: Path, *command: str | Path) -> None:
        if not output.exists() or name not in stages:
            console.print(f"{name} ...")
            stages[name] = run(*command)
            stages_file.write_bytes(msgspec.json.encode(stages))

    python = sys.executable
    script, me = here / "make_checkpoint.py", Path(__file__)
    command_line = (python, "-m", "edgediffusion.cli")
    report = work / "bench.json"
    stage("make_checkpoint", checkpoint, python, script, "sd15", "-o", checkpoint, "--force")
    stage(
        "export",
        bundle,
        *command_line,
        "export",
        checkpoint,
        "-o",
        bundle,
        "--size",
        SIZE,
        "--force",
    )
    stage("diffusers", work / "diffusers.npz", python, me, "diffusers", checkpoint, work)
    stage("edgediffusion", work / "ours.npz", python, me, "ours", bundle, work)
    quick = ("--rounds", str(rounds), "--warmup", "1", "--steps", str(STEPS), "--cold-starts", "1")
    stage("bench", report, *command_line, "bench", bundle, "--json", report, *quick)
    opened = ed.Bundle.open(bundle)
    return {
        "schema": SCHEMA,
        "command": "python benchmarks/full_size.py all --work DIR --json FILE",
        "machine": machine_facts(),
        "stages": {name: asdict(value) for name, value in stages.items()},
        "bundle_bytes": opened.bytes_on_disk,
        "parity": _parity(opened),
        "picture": compare(work / "ours.npz", work / "diffusers.npz"),
        "bench": msgspec.json.decode(report.read_bytes()),
    }


def compare(ours: Path, theirs: Path) -> dict[str, float]:
    """Compare final latents and pictures (in 0..255) with those of diffusers."""
    with np.load(ours) as got, np.load(theirs) as want:
        return {
            "steps": STEPS,
            "latents_l2": relative_l2(got["latents"], want["latents"]),
            "psnr_db": psnr_db(got["picture"], want["picture"]),
            "picture_std": float(want["picture"].std()),
        }


def run(*command: str | Path) -> Stage:
    """Run a process to its end; return its time and its peak resident memory."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], env=environment, stdout=sys.stderr)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {child.returncode}")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Stage(time.perf_counter() - start, usage.ru_maxrss / unit)


@app.command("ours")
def run_ours(bundle: Path, work: Path) -> None:
    """Make the picture with edgediffusion."""
    request = ed.Request(prompt=PROMPT, steps=STEPS, guidance=GUIDANCE, seed=SEED)
    with ed.Pipeline.open(bundle, device="cpu") as pipe:
        result = pipe.generate(request)
    console.print(result.timings)
    np.savez(work / "ours.npz", latents=result.latents, picture=result.images)


@app.command("diffusers")
def run_diffusers(checkpoint: Path, work: Path) -> None:
    """Make the picture with diffusers, in fp32 on the CPU."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        checkpoint, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    with torch.no_grad():
        latents = pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="latent",
        ).images
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    picture = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().numpy().transpose(0, 2, 3, 1)
    np.savez(work / "diffusers.npz", latents=latents.numpy(), picture=picture.astype(np.uint8))


def _parity(bundle: ed.Bundle) -> dict[str, dict[str, float]]:
    return {
        graph.file: {"l2": graph.parity.l2, "max_abs": graph.parity.max_abs}
        for component in bundle.manifest.components.values()
        for graph in component.graphs
    }


def _read_stages(path: Path) -> dict[str, Stage]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Stage]) if path.exists() else {}


if __name__ == "__main__":
    app()
