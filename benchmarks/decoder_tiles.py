"""How like a picture that is decoded in tiles is to the one that is decoded whole.

    edgediffusion export models/shapes/checkpoint -o DIR --size 128x128 --size 256x256 --batch 2 \
        --decoder-tile 64x64
    python benchmarks/decoder_tiles.py DIR --json benchmarks/results/MACHINE/decoder_tiles.json

Every caption is decoded whole and in each of the bundle's smaller tiles, from the same latents.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

# Run as a script, the repository's root is not on the path; the demo's scripts import each other.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "shapes"))

import edgediffusion as ed
from benchmarks.reports import Report, head, markdown, said_errors, write_report
from benchmarks.sameness import psnr_db
from edgediffusion.bundle import say_size
from edgediffusion.request import decoder_tiles
from edgediffusion.timing import summarize

SCHEMA: Final = "edgediffusion-decoder-tiles/1"

app = typer.Typer(add_completion=False)


@app.command()
@said_errors()
def main(
    bundle: Path,
    out: Annotated[Path, typer.Option("--json")] = Path("decoder_tiles.json"),
    number: Annotated[int, typer.Option(help="Captions, with seeds from 0 on.")] = 20,
    steps: Annotated[int, typer.Option(help="Steps of a picture.")] = 8,
) -> None:
    """Measure every size of the bundle."""
    from sampling import draw_captions

    captions = [str(caption) for caption in draw_captions(number, held_out=True)]
    with ed.Pipeline.open(bundle, device="cpu") as pipe:
        manifest = pipe.bundle.manifest
        report = head(SCHEMA) | {"bundle": manifest.name, "steps": steps, "psnr_db": {}}
        for size in manifest.sizes:
            report["psnr_db"][say_size(size)] = errors_at(pipe, size, captions, steps)
    write_report(out, report)


def errors_at(
    pipe: ed.Pipeline, size: tuple[int, int], captions: list[str], steps: int
) -> dict[str, list[float]]:
    """PSNR of each caption's picture in tiles to the whole one, by tile."""
    *tiles, _ = decoder_tiles("vae_decoder", size, pipe.bundle)
    found: dict[str, list[float]] = {say_size(tile): [] for tile in tiles}
    for seed, caption in enumerate(captions):
        request = ed.Request(prompt=caption, seed=seed, steps=steps, size=size)
        whole = pipe.generate(request).images[0]
        for tile in tiles:
            made = pipe.generate(replace(request, decoder_tile=tile)).images[0]
            found[say_size(tile)].append(round(psnr_db(made, whole), 2))
    return found


def tiles_table(report: Report) -> str:
    """Render the report for docs/memory.md."""
    rows = []
    for size, tiles in report["psnr_db"].items():
        for tile, values in tiles.items():
            spread = f"{summarize(values).median:.1f} dB", f"{min(values):.1f} dB"
            rows.append([size, tile, *spread, str(len(values))])
    return markdown(["picture", "tiles", "PSNR, median", "worst", "pictures"], rows)


if __name__ == "__main__":
    app()
