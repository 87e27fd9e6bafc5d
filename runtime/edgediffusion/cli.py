"""The command line. It parses, shows progress and prints; the work is done by the library."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import edgediffusion as ed
from edgediffusion.bench import BenchOptions
from edgediffusion.bench import bench as run_bench
from edgediffusion.bundle import parse_size, say_size
from edgediffusion.errors import OutputError, RequestError
from edgediffusion.files import write_atomically
from edgediffusion.report import graph_table, latency_table, say_notes, say_plans
from edgediffusion.timing import summarize

app = typer.Typer(
    name="edgediffusion",
    help="Diffusion models on edge machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
_notes = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and notes: all of stderr that ``--quiet`` leaves out."""

BundleOption = Annotated[
    str | None,
    typer.Option("--bundle", "-b", metavar="BUNDLE", help="Folder or name; default: the demo."),
]
BundleArgument = Annotated[
    str | None, typer.Argument(metavar="[BUNDLE]", help="Folder or name; default: the demo.")
]
DeviceOption = Annotated[str, typer.Option(help="Which device runs the graphs; see `devices`.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads per graph; 0: one per core.")]
SyntaxOption = Annotated[
    str, typer.Option(metavar="SYNTAX", help="plain, or weighted: (word:1.2), [word], BREAK.")
]
LongOption = Annotated[
    str, typer.Option(metavar="HOW", help="truncate, or chunks of 75 tokens each.")
]
SkipOption = Annotated[
    int | None, typer.Option(help="Last layers of the text encoder to leave out; 1: A1111's 2.")
]
EmbeddingOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[NAME=]FILE", help="Textual inversion for the prompts; repeat for more."),
]


@app.callback()
def options(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes, only errors.")
    ] = False,
) -> None:
    """Diffusion models on edge machines."""
    _notes.quiet = quiet


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path(
        "out.png"
    ),
    bundle: BundleOption = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1: off.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; default: a random one.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m, ...")] = None,
    schedule: Annotated[str | None, typer.Option(help="Spacing: leading, karras, ...")] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise of ddim and tcd, 0 to 1.")] = None,
    guidance_rescale: Annotated[float, typer.Option(help="0 to 1, against oversaturation.")] = 0.0,
    noise: Annotated[
        str, typer.Option(help="torch-cpu or torch-cuda: whose numbers.")
    ] = "torch-cpu",
    negative: Annotated[str, typer.Option(help="What the picture stays away from.")] = "",
    batch: Annotated[int, typer.Option(help="Number of pictures; seeds count up.")] = 1,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, one of the bundle's.")] = None,
    decoder: Annotated[
        str | None, typer.Option(help="full, or tiny where the bundle has one.")
    ] = None,
    decoder_tile: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of tiles to decode in, in less memory.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="LOW:HIGH noise levels with guidance, like 0.3:inf.")
    ] = None,
    guidance_every: Annotated[
        int | None, typer.Option(help="Run the negative prompt every so many steps only.")
    ] = None,
    deepcache: Annotated[
        int, typer.Option(help="Run all of the UNet every so many steps only.")
    ] = 1,
    deepcache_start: Annotated[
        int, typer.Option(help="Steps at the beginning that all run all of it.")
    ] = 0,
    prompt_syntax: SyntaxOption = "plain",
    long_prompts: LongOption = "truncate",
    clip_skip: SkipOption = None,
    negative_clip_skip: SkipOption = None,
    embedding: EmbeddingOption = None,
    image: Annotated[
        Path | None, typer.Option(help="Begin from this picture: image to image.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of it to give over, above 0 to 1; 0.8.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="fast: less time for a little quality; see docs/speed.md.")
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    residency: Annotated[
        str | None, typer.Option(help="What stays in memory: all, one component, or stream.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Like 2GB: choose residency and tiles that stay within.")
    ] = None,
) -> None:
    """Make a picture from a prompt."""
    targets = _targets(output, batch)
    request = ed.Request(
        prompt=prompt,
        negative=negative,
        steps=steps,
        guidance=guidance,
        seed=seed,
        sampler=sampler,
        schedule=schedule,
        eta=eta,
        guidance_rescale=guidance_rescale,
        noise=noise,  # type: ignore[arg-type]  # checked with the rest
        batch=batch,
        size=parse_size(size) if size else None,
        decoder=decoder,  # type: ignore[arg-type]
        decoder_tile=parse_size(decoder_tile) if decoder_tile else None,
        guidance_interval=_noise_levels(guidance_interval),
        guidance_every=guidance_every,
        deepcache_interval=deepcache,
        deepcache_start=deepcache_start,
        prompt_syntax=prompt_syntax,  # type: ignore[arg-type]
        long_prompts=long_prompts,  # type: ignore[arg-type]
        clip_skip=clip_skip,
        negative_clip_skip=negative_clip_skip,
        embeddings=_embeddings(embedding),
        image=image,
        strength=strength,
        preset=preset,
    )
    with _notes.status("opening the bundle"):  # a large one is hashed when it is new here
        memory = {"residency": residency, "max_memory": max_memory}
        pipe = ed.Pipeline.open(bundle, device=device, threads=threads, **memory)
    with pipe:
        result = _show_steps(pipe, request)
    for index, target in enumerate(targets):
        result.save(target, index)
        timings = result.timings
        _out.print(
            f"{escape(str(target))}  seed {result.seeds[index]}, {result.request.steps} steps, "
            f"{result.request.sampler}, guidance {result.request.guidance:g}, "
            f"{result.device}, {timings.total / 1000:.2f} s"
        )
    _say_choice(device, pipe)
    if max_memory is not None:
        tile = result.request.decoder_tile
        tiles = f", decoder tiles of {say_size(tile)}" if tile else ""
        _notes.print(f"note: residency {result.residency}{tiles}, for --max-memory {max_memory}")
    for name, cut in result.truncated.items():
        _notes.print(f"note: the end of the {name} did not fit and was left out: {_short(cut)}")


@app.command()
def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts to embed.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write .npy or .json; default: stdout.")
    ] = None,
    kind: Annotated[str, typer.Option(help="pooled (one vector a text) or hidden.")] = "pooled",
    prompt_syntax: SyntaxOption = "plain",
    long_prompts: LongOption = "truncate",
    clip_skip: SkipOption = None,
    embedding: EmbeddingOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Turn texts into embeddings."""
    if kind not in ("pooled", "hidden"):
        raise RequestError(f"unknown kind {kind!r}: known: pooled, hidden")
    if output is not None and output.suffix not in (".npy", ".json"):
        raise OutputError(f"{output} must end in .npy or .json")
    with ed.Pipeline.open(bundle, device=device) as pipe:
        embeddings = pipe.embed(
            texts,
            prompt_syntax=prompt_syntax,  # type: ignore[arg-type]  # checked there
            long_prompts=long_prompts,  # type: ignore[arg-type]
            clip_skip=clip_skip,
            embeddings=_embeddings(embedding),
        )
    values = embeddings.pooled if kind == "pooled" else embeddings.hidden
    if output is None:
        sys.stdout.write(msgspec.json.encode(values.tolist()).decode() + "\n")
    else:
        _write(output, _npy(values) if output.suffix == ".npy" else _json(values.tolist()))
        _out.print(f"{escape(str(output))}  {values.dtype} {values.shape}")
    _say_choice(device, pipe)
    for text, cut in zip(texts, embeddings.truncated, strict=True):
        if cut:
            _notes.print(f"note: the end of {_short(text)} did not fit: {_short(cut)}")


@app.command()
def verify(
    bundle: BundleArgument = None, device: DeviceOption = "auto", threads: ThreadsOption = 0
) -> None:
    """Check every hash and run every golden vector on this machine; exit code 0 or 1."""
    from edgediffusion.engine import EngineOptions, resolve_device

    opened = ed.Bundle.open(bundle)
    failed = 0
    for check in ed.verify(opened, resolve_device(device), EngineOptions(threads=threads)):
        failed += not check.passed
        mark = "[green]ok  [/]" if check.passed else "[red]FAIL[/]"
        _out.print(f"{mark} {escape(check.subject)}  {escape(check.detail)}")
    if failed:
        _err.print(f"error: {failed} check(s) failed")
        raise typer.Exit(1)


@app.command()
def info(
    bundle: BundleArgument = None,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Show what a bundle holds."""
    opened = ed.Bundle.open(bundle)
    manifest = opened.manifest
    if json:
        sys.stdout.write((opened.path / "manifest.json").read_text(encoding="utf-8"))
        return
    facts = {
        "name": manifest.name,
        "folder": str(opened.path),
        "family": manifest.family,
        "sizes": ", ".join(map(say_size, manifest.sizes)),
        "precision": f"{manifest.precision}, stored {manifest.store}",
        "on disk": f"{opened.bytes_on_disk / 2**20:.1f} MiB",
        "engines": say_plans(manifest) or "none built ahead of time",
        "scheduler": str(manifest.scheduler.get("_class_name")),
        "defaults": f"{manifest.defaults.steps} steps, guidance {manifest.defaults.guidance:g}",
        "licence": manifest.license,
        "source": f"{manifest.source.checkpoint} {manifest.source.revision or ''}".strip(),
        "exported": f"{manifest.created} with "
        + ", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
    }
    for key, value in facts.items():
        _out.print(f"{key:>10}  {escape(value)}")
    _out.print(graph_table(manifest))
    for note in say_notes(manifest):
        _out.print(escape(note))


@app.command()
def bench(
    bundle: BundleArgument = None,
    json: Annotated[Path | None, typer.Option(help="Write raw samples and facts here.")] = None,
    rounds: Annotated[int, typer.Option(help="Measured rounds.")] = 20,
    warmup: Annotated[int, typer.Option(help="Discarded rounds.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of the end-to-end picture.")] = 20,
    cold_starts: Annotated[int, typer.Option(help="Fresh processes to time.")] = 3,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Measure the latency per step on this machine."""
    options = BenchOptions(
        rounds=rounds,
        warmup=warmup,
        steps=steps,
        cold_starts=cold_starts,
        device=device,
        threads=threads,
    )
    opened = ed.Bundle.open(bundle)
    with _notes.status("starting") as status:
        report = run_bench(opened, options, status.update)
    if json is not None:
        _write(json, _json(report))
    print_report(report)


@app.command()
def devices() -> None:
    """Show which devices work here, and why the others don't."""
    for report in ed.devices():
        mark = "[green]yes[/]" if report.works else "[red]no [/]"
        _out.print(f"{mark} {report.name:<13} {escape(report.detail)}")


cache_app = typer.Typer(help="Compiled engines that are kept for the next start.")
app.add_typer(cache_app, name="cache")


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context) -> None:
    """Show the compiled engines that are kept for the next start."""
    if context.invoked_subcommand is not None:
        return
    from edgediffusion.byte_sizes import say_bytes
    from edgediffusion.engine_cache import engine_cache

    kept = engine_cache()
    entries = kept.entries()
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        _out.print(f"{used}  {say_bytes(entry.size):>9}  {entry.device:<8}  {escape(entry.label)}")
    total = say_bytes(sum(entry.size for entry in entries))
    limit = say_bytes(kept.limit)
    _out.print(f"{len(entries)} engine(s), {total} of at most {limit}, in {kept.folder}")


@cache_app.command()
def clear() -> None:
    """Remove all that is kept; engines that a running program uses stay."""
    from edgediffusion.byte_sizes import say_bytes
    from edgediffusion.engine_cache import engine_cache
    from edgediffusion.hashing import forget

    kept = engine_cache()
    before = sum(entry.size for entry in kept.entries())
    try:
        in_use = kept.clear()
    except OSError as error:
        raise OutputError(f"{kept.folder} cannot be emptied: {error.strerror or error}") from error
    forget()
    _out.print(f"removed {say_bytes(before - sum(entry.size for entry in in_use))}")
    for entry in in_use:
        _notes.print(f"note: {escape(entry.label)} stays: it is in use, or cannot be removed")


def print_report(report: dict[str, Any]) -> None:
    """Print the medians of a benchmark report."""
    _out.print(latency_table(report))
    share = summarize(report["own_share"])
    _out.print(f"runtime's own share of a step: median {share.median:.2%}, p90 {share.p90:.2%}")
    if report["peak_memory_mib"] is not None:
        _out.print(f"peak memory: {report['peak_memory_mib']:.0f} MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every expected error is one line on stderr and exit code 1."""
    _add_commands()
    with warnings.catch_warnings():
        warnings.showwarning = _note_warning
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False)
    except ed.EdgeDiffusionError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}")
        return 1
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _err.print("stopped")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors print themselves
            raise
        error.show()  # type: ignore[attr-defined]
        return 2
    return code if isinstance(code, int) else 0


def _note_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Show a warning as a note: where in our code it arose is nothing to the user."""
    _notes.print(f"note: {escape(str(message))}")


def _add_commands() -> None:
    """Add the subcommands that other parts of the project bring: the exporter's ``export``."""
    known = {command.name for command in app.registered_commands}
    for entry in metadata.entry_points(group="edgediffusion.commands"):
        if entry.name not in known:
            app.command(entry.name)(entry.load())


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=_notes, transient=True) as progress:
        yield progress


def _show_steps(pipe: ed.Pipeline, request: ed.Request) -> ed.Result:
    stream = pipe.stream(request)
    with _progress() as progress:
        task = progress.add_task("loading", total=None)
        for step in stream:
            progress.update(
                task, description="denoising", completed=step.index + 1, total=step.total
            )
    assert step.result is not None, "the last step carries the result"
    return step.result


def _say_choice(device: str, pipe: ed.Pipeline) -> None:
    """Say which device ``auto`` took and why; one that was asked for by name needs no words."""
    if device == "auto":
        _notes.print(f"note: device {pipe.device}: {escape(pipe.device_reason)}")


def _short(text: str, most: int = 60) -> str:
    """Quote the beginning of a text that may be very long."""
    return escape(repr(text if len(text) <= most else text[:most] + "…"))


def _targets(output: Path, batch: int) -> list[Path]:
    """The files to write, checked before the work is done and not after."""
    if output.suffix.lower() != ".png":
        raise OutputError(f"{output} must end in .png, the format that is written")
    if not output.parent.is_dir():
        raise OutputError(f"{output} cannot be written: the folder {output.parent} does not exist")
    if output.is_dir():
        raise OutputError(f"{output} cannot be written: it is a folder")
    if batch <= 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(batch)]


def _noise_levels(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise RequestError(
            f"guidance interval {text!r} is not LOW:HIGH in noise levels, like 0.3:inf"
        ) from None
    return low, high


def _embeddings(given: Sequence[str] | None) -> tuple[ed.TextualInversion, ...]:
    """Read ``NAME=FILE`` or ``FILE``; an existing file may have an equals sign in its name."""
    found = []
    for text in given or ():
        name, equals, file = text.partition("=")
        alone = not equals or Path(text).is_file()
        found.append(ed.TextualInversion(text) if alone else ed.TextualInversion(file, name))
    return tuple(found)


def _json(data: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n"


def _npy(values: np.ndarray[Any, Any]) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    raise SystemExit(main())
