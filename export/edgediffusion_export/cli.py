"""``edgediffusion export``: the command that this package adds to the runtime's command line."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgediffusion.bundle import parse_size
from edgediffusion.errors import CheckpointError
from edgediffusion.manifest_file import MANIFEST_NAME, read_manifest
from edgediffusion.report import graph_table, say_notes
from edgediffusion_export.options import ExportOptions

PACKAGES: Final = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "huggingface_hub")


def require_packages() -> None:
    """Raise CheckpointError, naming the install, unless the extra ``export`` is there."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise CheckpointError(
            f"export needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed: pip install edgediffusion[export]"
        )


def export(
    checkpoint: Annotated[str, typer.Argument(help="Diffusers folder, or a hub id (ORG/NAME).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    size: Annotated[
        list[str] | None, typer.Option(help="HEIGHTxWIDTH; repeat for more. Default: the model's.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="UNet batch; repeat for more. Default: 1 and 2.")
    ] = None,
    chunks: Annotated[
        int, typer.Option(help="Longest prompt, in chunks of 75 tokens; a UNet graph for each.")
    ] = 1,
    deepcache: Annotated[
        bool, typer.Option("--deepcache", help="Add UNet graphs for cheaper steps (DeepCache).")
    ] = False,
    attention_tiles: Annotated[
        int,
        typer.Option(help="Tiles a side for the UNet's largest self-attention: faster, inexact."),
    ] = 1,
    rewrites: Annotated[
        bool, typer.Option(help="Add files that CPUs compute faster in float32; exact.")
    ] = True,
    precision: Annotated[
        str, typer.Option(help="fp32; fp16 for GPUs; int8 or int8-dynamic for CPUs.")
    ] = "fp32",
    calibrate: Annotated[
        Path | None, typer.Option(help="For int8: a text file with one prompt a line.")
    ] = None,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="7-bit weights: int8 for CPUs without VNNI.")
    ] = False,
    split: Annotated[
        int, typer.Option(help="Parts to cut the UNet into, for machines with little memory.")
    ] = 1,
    decoder_tile: Annotated[
        list[str] | None,
        typer.Option(help="HEIGHTxWIDTH of tiles to decode large pictures in; repeat for more."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Weights on disk: source, fp32 or fp16.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu; cuda adds graphs in ONNX Runtime's CUDA operators, tensorrt-rtx built "
            "engines; repeatable."
        ),
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="GPUs of tensorrt-rtx, like 8.9. Default: 8.0, 8.6, 8.9 and 12.0."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the checkpoint's name.")] = None,
    license: Annotated[
        str | None, typer.Option(help="SPDX id. Default: what the checkpoint says.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    steps: Annotated[int, typer.Option(help="The bundle's default steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="The bundle's default guidance.")] = 7.5,
    sampler: Annotated[
        str | None, typer.Option(help="The bundle's default sampler, in place of the scheduler's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a PyTorch checkpoint into a verified bundle."""
    require_packages()
    options = ExportOptions(
        checkpoint=checkpoint,
        output=output,
        sizes=tuple(parse_size(text) for text in size or ()),
        batches=tuple(batch or (1, 2)),
        chunks=chunks,
        deepcache=deepcache,
        attention_tiles=attention_tiles,
        split=split,
        decoder_tiles=tuple(parse_size(text) for text in decoder_tile or ()),
        rewrites=ExportOptions.rewrites if rewrites else (),
        precision=precision,
        calibrate=calibrate,
        reduce_range=reduce_range,
        store=store,
        targets=tuple(target or ("cpu",)),
        compute_capabilities=tuple(compute_capability or ()),
        name=name,
        license=license,
        revision=revision,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        force=force,
    )
    started = time.perf_counter()
    bundle = _export_with_progress(options)
    print_summary(bundle, time.perf_counter() - started)


def print_summary(bundle: Path, seconds: float, console: Console | None = None) -> None:
    """Print the graphs with what was measured, and the size on disk."""
    console = console or Console(highlight=False, soft_wrap=True)
    manifest = read_manifest(bundle)
    console.print(graph_table(manifest))
    for note in say_notes(manifest):
        console.print(note, markup=False)
    total = sum(file.size for file in manifest.files.values())
    total += (bundle / MANIFEST_NAME).stat().st_size
    console.print(
        f"{bundle}  {total / 2**20:.1f} MiB, licence {manifest.license}, {seconds:.0f} s",
        markup=False,
    )


def _export_with_progress(options: ExportOptions) -> Path:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading PyTorch", total=None)
        from edgediffusion_export.exporter import export_checkpoint

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return export_checkpoint(options, show)
