"""What an NVIDIA GPU makes of Stable Diffusion: ONNX Runtime's CUDA provider beside PyTorch.

    python benchmarks/gpu.py --json gpu.json              # everything; long
    python benchmarks/gpu.py sd15/unet/512/1 --json gpu.json
    python benchmarks/gpu.py --list

SD 1.5 and SDXL in their true architectures with random fp16 weights: step latency, text encoder and
decoder, whole pictures, throughput over batches, memory, and how far all that is from a measured
roofline. All contenders of a piece compute with the same weights, in one process, in turns.

The report is written after each piece, and a piece that is in it is not measured again: on a
machine that is lent by the minute, run the same command until nothing is left. ``--seconds`` begins
no further piece after that time. Within a piece the report is written after each contender, with a
few rounds; such a piece is measured again by the next run, whole.

Needs the ``export`` extra, onnxruntime-gpu and PyTorch with CUDA.
"""

from __future__ import annotations

import json as json_
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.flops import count
from benchmarks.gpu_contenders import contenders
from benchmarks.gpu_field import Ceiling, Field, Say, gpu_ceilings, release_unused
from benchmarks.gpu_graphs import prepared
from benchmarks.gpu_pictures import picture_contenders, prepared_parts
from benchmarks.gpu_pieces import OURS, RIVAL, Piece, all_pieces, chosen_pieces
from benchmarks.gpu_tables import layout, tables
from benchmarks.reports import Report, head, read_report, said_errors, write_report
from edgediffusion.cuda_provider import require_cuda
from edgediffusion.errors import DeviceError, RequestError
from edgediffusion.nvidia_driver import driver_version

SCHEMA: Final = "edgediffusion-gpu/1"
_GLIMPSE: Final = 3
"""Rounds after each contender: enough to tell something, if the run is cut off."""

Facts = dict[str, Any]
Keep = Callable[[Facts], None]


def measure_piece(piece: Piece, rounds: int, say: Say, keep: Keep) -> Facts:
    """Measure one piece; returns raw samples and counts as JSON-ready data.

    ``keep`` gets the same after each contender, of a few rounds and marked as not complete.
    """
    with ExitStack() as stack:
        field = Field()
        telling = partial(_tell, piece, say)
        telling("building and tracing")
        opening = _open_picture if piece.part == "picture" else _open_network
        facts: Facts = {}
        for facts in opening(piece, stack, field, telling):
            keep(_measured(piece, field, facts, {}, _GLIMPSE, telling) | {"complete": False})
        tops = _open_ceilings(field)
        return _measured(piece, field, facts, tops, rounds, telling) | {"complete": True}


def _tell(piece: Piece, say: Say, what: str) -> None:
    say(f"{piece.key}: {what}")


def _measured(
    piece: Piece, field: Field, facts: Facts, tops: Mapping[str, Ceiling], rounds: int, say: Say
) -> Facts:
    samples = field.measured(rounds, say)
    found = facts | {
        "pictures": piece.pictures,
        "samples_ms": {name: each for name, each in samples.items() if name not in tops},
        "memory_mib": {name: each for name, each in field.memory.items() if name not in tops},
        "absent": dict(field.absent),
        "ceilings": {
            name: {"work": top.work, "samples_ms": samples[name]}
            for name, top in tops.items()
            if name in samples
        },
    }
    if "own_share" in facts:
        found["own_share"] = facts["own_share"][-rounds:]  # without those of warming up
    return found


def _open_ceilings(field: Field) -> dict[str, Ceiling]:
    made: dict[str, Ceiling] = {}

    def opened(name: str, make: Callable[[], Ceiling]) -> Callable[[], object]:
        made[name] = make()
        return made[name].run

    for name, make in gpu_ceilings().items():
        field.add(name, partial(opened, name, make))
    return made


def _open_network(piece: Piece, stack: ExitStack, field: Field, say: Say) -> Iterator[Facts]:
    """Open one contender after the other; yield the facts of the piece after each."""
    subject = stack.enter_context(prepared(piece))
    cost = count(subject.path)
    own = subject.spec.devices.get("cuda")
    facts = {
        "flops": cost.matrix_flops,
        "bytes": cost.weight_bytes + cost.activation_bytes,
        "operators": own.operators if own else {},
    }
    for contender in contenders():
        say(f"opening {contender.name}")
        opened = partial(_entered, stack, contender.open, subject)
        field.add(contender.name, opened, contender.held(subject))
        yield facts


def _entered(stack: ExitStack, opening: Callable[..., Any], subject: Any) -> Any:
    return stack.enter_context(opening(subject))


def _open_picture(piece: Piece, stack: ExitStack, field: Field, say: Say) -> Iterator[Facts]:
    subjects = stack.enter_context(prepared_parts(piece))
    own_share: list[float] = []
    for contender in picture_contenders(own_share):
        say(f"opening {contender.name}")
        opened = partial(_entered, stack, contender.open, subjects)
        field.add(contender.name, opened, contender.held(subjects))
        yield {"own_share": own_share}


def begun_report(path: Path | None) -> Report:
    """Go on with a report that is there, or begin one.

    Raises RequestError for one of another GPU or of other libraries: its pieces would be compared.
    """
    gpu = asdict(require_cuda()) | {"driver": driver_version()}
    fresh = head(SCHEMA) | {"gpu": gpu, "torch": str(torch.__version__), "pieces": {}}
    if path is None or not path.exists():
        return fresh
    report = read_report(path, [SCHEMA])
    was, now = _measured_with(report), _measured_with(json_.loads(json_.dumps(fresh)))
    if changed := [name for name in {**was, **now} if was.get(name) != now.get(name)]:
        said = ", ".join(f"{each} was {was.get(each)}, is {now.get(each)}" for each in changed)
        raise RequestError(
            f"{path} was begun with another GPU or other libraries, which one report must not mix: "
            f"{said}. Pass another file to --json"
        )
    return report


def _measured_with(report: Report) -> Facts:
    return {**report["gpu"], "torch": report["torch"], **report["machine"]["libraries"]}


def require_gpu() -> None:
    """Raise DeviceError, which says what would be measured, unless both sides can compute here."""
    try:
        require_cuda()
        if not torch.cuda.is_available():
            raise DeviceError(
                f"PyTorch {torch.__version__} sees no GPU: install PyTorch's wheels for CUDA"
            )
    except DeviceError as error:
        pieces = ", ".join(piece.key for piece in all_pieces())
        raise DeviceError(
            f"{error}. On a machine with an NVIDIA GPU this measures, for {OURS}, {RIVAL} and "
            f"others in turns: {pieces}"
        ) from error


def run_all(
    pieces: list[Piece],
    report: Report,
    save: Callable[[Report], None],
    measuring: Callable[[Piece, Keep], Facts],
    seconds: float,
) -> Iterator[Piece]:
    """Measure pieces until the time is up, saving as they grow; yield those that are left."""
    start = time.monotonic()
    for piece in pieces:
        if time.monotonic() - start > seconds:
            yield piece
            continue

        def keep(facts: Facts, key: str = piece.key) -> None:
            report["pieces"][key] = facts
            save(report)

        keep(measuring(piece, keep))
        release_unused()


@said_errors()
def main(
    piece: Annotated[list[str] | None, typer.Argument(help="As in --list, or a beginning.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="The report, to begin or to go on with.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each piece.")] = 30,
    seconds: Annotated[float, typer.Option(help="Begin no piece after this time.")] = 1e9,
    listed: Annotated[bool, typer.Option("--list", help="Name the pieces and end.")] = False,
    shown: Annotated[
        bool, typer.Option("--layout", help="Print the tables without figures and end.")
    ] = False,
) -> None:
    """Measure, and print tables."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if shown:
        sys.stdout.write(f"{layout()}\n")
        return
    if listed:
        sys.stdout.writelines(f"{each.key}\n" for each in chosen_pieces(piece or (), {}))
        return
    chosen_pieces(piece or (), {})  # a name that is wrong is said before a GPU that is missing
    require_gpu()
    report = begun_report(json)
    pieces = chosen_pieces(piece or (), report["pieces"])
    save = (lambda made: write_report(json, made)) if json else (lambda made: None)
    with console.status("starting") as status:

        def measuring(piece: Piece, keep: Keep) -> Facts:
            return measure_piece(piece, rounds, status.update, keep)

        left = list(run_all(pieces, report, save, measuring, seconds))
    sys.stdout.write(f"{tables(report)}\n")
    if left:
        console.print(f"left, run the same command again: {', '.join(each.key for each in left)}")


if __name__ == "__main__":
    typer.run(main)
