"""What an NVIDIA GPU makes of Stable Diffusion: ONNX Runtime's CUDA provider beside PyTorch.

    python benchmarks/gpu.py --json gpu.json              # everything; long
    python benchmarks/gpu.py sd15/unet/512/1 --json gpu.json
    python benchmarks/gpu.py --list

SD 1.5 and SDXL in their true architectures with random fp16 weights: step latency, text encoder and
decoder, whole pictures, throughput over batches, memory, and how far all that is from a measured
roofline. All contenders of a piece compute with the same weights, in one process, in turns.

The report is written after each piece, and a piece that is in it is not measured again: on a
machine that is lent by the minute, run the same command until nothing is left. ``--seconds`` begins
no further piece after that time. Needs the ``export`` extra, onnxruntime-gpu and PyTorch with CUDA.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
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
from benchmarks.gpu_graphs import Subject, prepared
from benchmarks.gpu_pictures import ours, prepared_parts, rivals
from benchmarks.gpu_pieces import OURS, RIVAL, Piece, all_pieces, chosen_pieces
from benchmarks.gpu_tables import COPY, PRODUCT, bars, ceilings_table, pieces_table
from benchmarks.reports import Report, head, read_report, said_errors, write_report
from edgediffusion.cuda_driver import free_memory
from edgediffusion.cuda_provider import require_cuda
from edgediffusion.engine import Engine, EngineOptions
from edgediffusion.engine_cuda import CudaOptions, open_cuda
from edgediffusion.errors import DeviceError
from edgediffusion.rounds import measure

SCHEMA: Final = "edgediffusion-gpu/1"
_SIDE: Final = 8192
_COPIED: Final = 1 << 30
_REST_S: Final = 0.002

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ceiling:
    """Work that nothing but the GPU limits: operations or bytes of one call."""

    work: float
    run: Callable[[], object]


@dataclass
class Field:
    """The contenders that opened, the memory that each took, and why others are absent."""

    calls: dict[str, Callable[[], object]]
    memory: dict[str, float]
    absent: dict[str, str]

    def add(self, name: str, opened: Callable[[], Callable[[], object]]) -> None:
        """Open one; whatever goes wrong there is that contender's, and the others go on."""
        before = free_memory()
        try:
            self.calls[name] = opened()
        except Exception as error:
            self.absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"
        self.memory[name] = (before - free_memory()) / 2**20


def gpu_ceilings(side: int = _SIDE, copied: int = _COPIED) -> dict[str, Ceiling]:
    """A large fp16 product, and a copy within the GPU's memory, by PyTorch."""
    a, b, out = (torch.randn(side, side, device="cuda").half() for _ in range(3))
    source, target = (torch.empty(copied, dtype=torch.uint8, device="cuda") for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b, out=out)
        torch.cuda.synchronize()

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return {PRODUCT: Ceiling(2.0 * side**3, multiply), COPY: Ceiling(2.0 * copied, copy)}


def measure_piece(piece: Piece, rounds: int, say: Say) -> dict[str, Any]:
    """Measure one piece; returns raw samples and counts as JSON-ready data."""
    with ExitStack() as stack:
        field = Field({}, {}, {})
        say(f"{piece.key}: building and tracing")
        if piece.part == "picture":
            facts = _open_picture(piece, stack, field, say)
        else:
            facts = _open_network(piece, stack, field, say)
        tops = gpu_ceilings()
        workloads = field.calls | {name: top.run for name, top in tops.items()}
        samples = measure(workloads, rounds, lambda what: say(f"{piece.key}: {what}"), _REST_S)
        shares = facts.get("own_share")
        if shares:
            del shares[:-rounds]  # those of warming up
    return facts | {
        "pictures": piece.pictures,
        "samples_ms": {name: samples[name] for name in field.calls},
        "memory_mib": field.memory,
        "absent": field.absent,
        "ceilings": {
            name: {"work": top.work, "samples_ms": samples[name]} for name, top in tops.items()
        },
    }


def _open_network(piece: Piece, stack: ExitStack, field: Field, say: Say) -> dict[str, Any]:
    subject = stack.enter_context(prepared(piece))
    for contender in contenders():
        say(f"{piece.key}: opening {contender.name}")
        field.add(
            contender.name,
            lambda open_=contender.open: stack.enter_context(open_(subject)),  # type: ignore[misc]
        )
    cost = count(subject.path)
    own = subject.spec.devices.get("cuda")
    return {
        "flops": cost.matrix_flops,
        "bytes": cost.weight_bytes + cost.activation_bytes,
        "operators": own.operators if own else {},
    }


def _open_picture(piece: Piece, stack: ExitStack, field: Field, say: Say) -> dict[str, Any]:
    subjects = stack.enter_context(prepared_parts(piece))
    own_share: list[float] = []

    def open_ours() -> Callable[[], object]:
        engines = {part: stack.enter_context(_engine(each)) for part, each in subjects.items()}
        run = ours(subjects, engines, own_share)
        run()
        return run

    say(f"{piece.key}: opening {OURS}")
    field.add(OURS, open_ours)
    for name, compiled in ((RIVAL, True), ("torch eager", False)):
        say(f"{piece.key}: opening {name}")
        field.add(name, lambda c=compiled: rivals(subjects, compiled=c, place="cuda"))  # type: ignore[misc]
    return {"own_share": own_share}


def _engine(subject: Subject) -> Engine:
    backend = open_cuda(subject.spec, subject.path, EngineOptions(), CudaOptions())
    return Engine(subject.spec, "cuda", backend, backend.arithmetic)


def begun_report(path: Path | None) -> Report:
    """Go on with a report that is there, or begin one."""
    if path is not None and path.exists():
        return read_report(path, [SCHEMA])
    return head(SCHEMA) | {
        "gpu": asdict(require_cuda()),
        "torch": str(torch.__version__),
        "pieces": {},
    }


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
    measuring: Callable[[Piece], dict[str, Any]],
    seconds: float,
) -> Iterator[Piece]:
    """Measure pieces until the time is up, saving after each; yield those that are left."""
    start = time.monotonic()
    for piece in pieces:
        if time.monotonic() - start > seconds:
            yield piece
            continue
        report["pieces"][piece.key] = measuring(piece)
        save(report)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@said_errors()
def main(
    piece: Annotated[list[str] | None, typer.Argument(help="As in --list, or a beginning.")] = None,
    json: Annotated[
        Path | None, typer.Option(help="The report, to begin or to go on with.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each piece.")] = 30,
    seconds: Annotated[float, typer.Option(help="Begin no piece after this time.")] = 1e9,
    listed: Annotated[bool, typer.Option("--list", help="Name the pieces and end.")] = False,
) -> None:
    """Measure, and print tables."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if listed:
        sys.stdout.writelines(f"{each.key}\n" for each in chosen_pieces(piece or (), {}))
        return
    chosen_pieces(piece or (), {})  # a name that is wrong is said before a GPU that is missing
    require_gpu()
    report = begun_report(json)
    pieces = chosen_pieces(piece or (), report["pieces"])
    save = (lambda made: write_report(json, made)) if json else (lambda made: None)
    with console.status("starting") as status:
        measuring = partial(measure_piece, rounds=rounds, say=status.update)
        left = list(run_all(pieces, report, save, measuring, seconds))
    sys.stdout.write(f"{pieces_table(report)}\n\n{ceilings_table(report)}\n\n{bars(report)}\n")
    if left:
        console.print(f"left, run the same command again: {', '.join(each.key for each in left)}")


if __name__ == "__main__":
    typer.run(main)
