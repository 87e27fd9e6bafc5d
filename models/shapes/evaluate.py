"""Score pictures against 1,000 held-out captions, and against 1,000 as seen in training.

``checkpoint`` makes the pictures with PyTorch and scores them; ``pictures`` scores those that
another program made from ``captions``. From Python:
``score(pictures, draw_captions(1000, held_out=True))``.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import typer
from judge import ATTRIBUTES, judge
from numpy.typing import NDArray
from PIL import Image
from sampling import draw_captions
from scenes import Caption

Z: Final = 1.959964  # of the two-sided 95 % interval
HERE: Final = Path(__file__).parent
BAR: Final = {"singles": 0.95, "pairs": 0.85, "all": 0.90}
app = typer.Typer(no_args_is_help=True, add_completion=False)


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share after Wilson (1927)."""
    if total == 0:
        return 0.0, 1.0
    share, shrink = right / total, 1 + Z * Z / total
    middle = share + Z * Z / (2 * total)
    spread = Z * float(np.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total)))
    return (middle - spread) / shrink, (middle + spread) / shrink


def share(verdicts: Sequence[bool]) -> dict[str, Any]:
    """How many are right, of how many, and the interval."""
    right, total = sum(verdicts), len(verdicts)
    interval = [round(bound, 4) for bound in wilson(right, total)]
    return {
        "right": right,
        "of": total,
        "share": round(right / max(1, total), 4),
        "interval": interval,
    }


def score(pictures: Iterable[NDArray[np.uint8]], captions: Sequence[Caption]) -> dict[str, Any]:
    """Judge one picture for each caption.

    Parameters
    ----------
    pictures : iterable of uint8 arrays (128, 128, 3)
        In the order of the captions; a generator is fine.
    captions : sequence of Caption
        What the pictures must show.

    Returns
    -------
    dict
        For ``singles``, ``pairs`` and ``all``: the share of wholly right pictures, and the same
        per attribute among the captions that name it.
    """
    verdicts = [
        judge(picture, caption) for picture, caption in zip(pictures, captions, strict=True)
    ]
    groups = {
        "singles": [v for v, c in zip(verdicts, captions, strict=True) if len(c.claims) == 1],
        "pairs": [v for v, c in zip(verdicts, captions, strict=True) if len(c.claims) == 2],
        "all": verdicts,
    }
    return {name: _summary(group) for name, group in groups.items()}


def _summary(verdicts: list[dict[str, bool]]) -> dict[str, Any]:
    named = {a: [v[a] for v in verdicts if a in v] for a in ATTRIBUTES}
    attributes = {a: share(values) for a, values in named.items() if values}
    return {**share([all(v.values()) for v in verdicts]), "attributes": attributes}


def load_pictures(path: Path) -> Iterable[NDArray[np.uint8]]:
    """Pictures in order: an ``.npz`` or ``.npy`` file with one array, or a folder of PNG files."""
    if path.is_dir():
        return (np.asarray(Image.open(p).convert("RGB")) for p in sorted(path.glob("*.png")))
    stored = np.load(path)
    array: NDArray[np.uint8] = stored[stored.files[0]] if path.suffix == ".npz" else stored
    return array


@app.command()
def captions(number: int = 1000, seen: bool = False, out: Path = Path("captions.jsonl")) -> None:
    """Write the captions with their seeds, one JSON object a line."""
    drawn = draw_captions(number, held_out=not seen)
    lines = [json.dumps({"seed": i, "prompt": str(caption)}) for i, caption in enumerate(drawn)]
    out.write_text("\n".join(lines) + "\n")


@app.command()
def pictures(path: Path, seen: bool = False, number: int = 1000) -> None:
    """Score pictures that another program made from the captions."""
    print(
        json.dumps(score(load_pictures(path), draw_captions(number, held_out=not seen)), indent=2)
    )


@app.command()
def checkpoint(
    folder: Path = HERE / "checkpoint",
    out: Path = HERE / "results" / "score.json",
    number: int = 1000,
    steps: int = 20,
    guidance: float = 2.0,
    sampler: str = "ddim",
    device: str = "cpu",
    tiny: bool = False,
) -> None:
    """Make the pictures of both sets of captions with PyTorch, two processes, and score them."""
    import diffusers
    import torch

    options = {"steps": steps, "guidance": guidance, "sampler": sampler}
    report: dict[str, Any] = {
        "command": " ".join(["python", "models/shapes/evaluate.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "settings": {**options, "number": number, "tiny": tiny},
        "bar": BAR,
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {
            name: pool.submit(score_set, folder, device, tiny, name, number, options)
            for name in ("held_out", "seen")
        }
        report |= {name: job.result() for name, job in jobs.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    for name in ("held_out", "seen"):
        print(name, {group: report[name][group]["share"] for group in BAR})


def score_set(
    folder: Path, device: str, tiny: bool, name: str, number: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Make and score the pictures of one set of captions, ``held_out`` or ``seen``."""
    from loop import keep_to_own_cores
    from sampling import load_models, sample

    keep_to_own_cores(("held_out", "seen").index(name), 2)
    start, drawn = time.monotonic(), draw_captions(number, held_out=name == "held_out")
    models = load_models(folder, device, tiny=tiny)
    made = sample(models, [str(caption) for caption in drawn], range(number), **options)
    return score(made, drawn) | {"seconds": round(time.monotonic() - start)}


if __name__ == "__main__":
    app()
