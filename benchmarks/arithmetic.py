"""What computing in bf16 costs and gains on this machine, on the demo: right pictures, PSNR, time.

    python benchmarks/arithmetic.py shapes --json benchmarks/results/MACHINE/arithmetic.json

As savings.py does it: every held-out caption from the same seed, on ``cpu`` in float32 and on
``openvino`` in bf16, there with the preset ``fast`` as well. The first is what the others are
compared with. On a CPU without fast bf16 ``openvino`` computes in float32, which is an error here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

# Run as a script, the repository's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import edgediffusion as ed
from benchmarks.reports import said_errors
from benchmarks.savings import WAYS, Way, make_all
from edgediffusion.cpu import computes_bf16
from edgediffusion.errors import DeviceError

FAST: Final = "preset fast"


def ways_of(cpu: ed.Pipeline, openvino: ed.Pipeline) -> dict[str, Way]:
    """The ways to make a caption, the one to compare with first."""
    return {
        "fp32": (cpu, {}),
        "bf16": (openvino, {}),
        f"fp32, {FAST}": (cpu, WAYS[FAST]),
        f"bf16, {FAST}": (openvino, WAYS[FAST]),
    }


@said_errors()
def main(
    bundle: Annotated[str, typer.Argument()] = "shapes",
    out: Annotated[Path, typer.Option("--json")] = Path("arithmetic.json"),
    number: int = 1000,
) -> None:
    """Fill the table, caption by caption."""
    if not computes_bf16():
        raise DeviceError("this CPU has no fast bf16, so there is nothing to compare here")
    with (
        ed.Pipeline.open(bundle, device="cpu") as cpu,
        ed.Pipeline.open(bundle, device="openvino") as openvino,
    ):
        make_all(out, ways_of(cpu, openvino), number)


if __name__ == "__main__":
    typer.run(main)
