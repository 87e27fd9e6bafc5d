"""Write a full-size checkpoint: the true architecture, seeded random weights.

    python benchmarks/make_checkpoint.py sd15 -o DIR      # or sd21, sd21-base, sdxl

Speed, memory and numerical error of an export do not depend on what a network has learnt, so
benchmarks and tests of the full size need no download.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.architectures import ARCHITECTURES
from benchmarks.checkpoints import (
    CLIP_VOCABULARY_SIZE,
    Architecture,
    Merges,
    read_merges,
    write_checkpoint,
)
from edgediffusion.errors import choices

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CLIP_VOCABULARY: Final = REPOSITORY.parent / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"


class Dtype(StrEnum):
    """How the weights are stored."""

    fp16 = "fp16"
    fp32 = "fp32"


TORCH_DTYPES: Final = {Dtype.fp16: torch.float16, Dtype.fp32: torch.float32}


def find_merges(path: Path, console: Console) -> Merges:
    """Read CLIP's merges, or say that a stand-in takes their place."""
    if path.is_file():
        return read_merges(path)
    console.print(
        f"No CLIP vocabulary at {path}: the tokenizer gets a byte-level stand-in of the same size, "
        "which splits every word into bytes. Pass --clip-vocab to use the real one.",
        soft_wrap=True,
    )
    return []


def parameter_total(architecture: Architecture) -> int:
    """Add up the known parameter counts."""
    return sum(model.parameters or 0 for model in architecture.models.values())


def main(
    architecture: Annotated[str, typer.Argument(help=f"One of: {', '.join(ARCHITECTURES)}.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="How the weights are stored.")] = Dtype.fp16,
    clip_vocab: Annotated[
        Path, typer.Option(help="OpenAI's bpe_simple_vocab_16e6.txt.gz.")
    ] = CLIP_VOCABULARY,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing folder.")] = False,
) -> None:
    """Write a checkpoint with the true architecture and seeded random weights."""
    console = Console(stderr=True)
    if architecture not in ARCHITECTURES:
        near = choices(architecture, ARCHITECTURES)
        raise typer.BadParameter(f"unknown architecture {architecture!r}: {near}")
    chosen = ARCHITECTURES[architecture]
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(architecture, total=parameter_total(chosen))
        try:
            write_checkpoint(
                output,
                chosen,
                find_merges(clip_vocab, console),
                vocabulary_size=CLIP_VOCABULARY_SIZE,
                seed=seed,
                dtype=TORCH_DTYPES[dtype],
                force=force,
                advance=lambda parameters: progress.advance(task, parameters),
            )
        except FileExistsError as error:
            console.print(f"Error: {error}", soft_wrap=True)
            raise typer.Exit(1) from error
    console.print(f"Wrote {output}: {parameter_total(chosen):,} parameters, seed {seed}.")


if __name__ == "__main__":
    typer.run(main)
