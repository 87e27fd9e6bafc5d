"""One resumable training stage: optimiser, schedule, moving average, state on disk, log."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

Losses = dict[str, Tensor]
WARM_UP = 100
console = Console()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a stage ends: after so many steps (exactly repeatable), or minutes of training."""

    minutes: float = 0.0
    steps: int = 0

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used, 0 to 1."""
        return min(1.0, step / self.steps if self.steps else seconds / (60 * self.minutes))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage trains, and how: the sum of ``losses(step, progress)`` goes down."""

    name: str
    networks: nn.ModuleDict
    losses: Callable[[int, float], Losses]
    budget: Budget
    rate: float = 1e-3
    decay: float = 0.998
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class Team:
    """The processes that train together, under ``torchrun``: who this one is, and of how many."""

    rank: int = 0
    size: int = 1

    def average(self, gradients: list[Tensor]) -> None:
        """Replace the gradients by their mean over all processes."""
        if self.size > 1:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def agree(self, value: float) -> float:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)


def keep_to_own_cores(rank: int, size: int) -> None:
    """Share the cores out among `size` processes; left alone, two may end up on one core."""
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        own = cores[rank::size] or cores
        os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own))


ALONE: Final = Team()


def write_atomically(path: Path, state: object) -> None:
    """Save with torch so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any]:
    """Read a state file: tensors and numbers only, no code."""
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def train(
    stage: Stage,
    folder: Path,
    *,
    save_every: float = 600.0,
    log_every: int = 50,
    stop_after: int | None = None,
    team: Team = ALONE,
    on_save: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a stage to the end of its budget, from its state on disk if there is one.

    Afterwards the networks hold the moving average of their weights.

    Parameters
    ----------
    stage : Stage
        What to train.
    folder : Path
        Where ``NAME.pt`` and ``log.jsonl`` are kept.
    save_every : float
        Seconds between two states on disk.
    log_every : int
        Steps between two lines of the log.
    stop_after : int, optional
        Break off after this step with `KeyboardInterrupt`, as a kill would (for tests).
    team : Team
        The processes among which the batches are shared out; the first one writes.
    on_save : callable
        Called after each save, with the averaged weights in the networks.
    """
    path, live = folder / f"{stage.name}.pt", list(stage.networks.parameters())
    optimiser = torch.optim.AdamW(
        live, stage.rate, betas=(0.9, 0.99), weight_decay=stage.weight_decay, foreach=True
    )
    average = [p.detach().clone() for p in live]
    step, seconds = 0, 0.0
    if path.exists():
        state = load(path)
        step, seconds = state["step"], state["seconds"]
        _copy(state["live"], live)
        _copy(state["average"], average)
        optimiser.load_state_dict(state["optimiser"])
        console.print(f"{stage.name}: goes on at step {step}, {seconds / 60:.1f} minutes")
        if stage.budget.progress(step, seconds) >= 1.0:
            _copy(average, live)
            stage.networks.eval()
            return

    def save() -> None:
        if team.rank > 0:
            return
        weights = {"live": [p.detach() for p in live], "average": average}
        write_atomically(
            path, weights | {"step": step, "seconds": seconds, "optimiser": optimiser.state_dict()}
        )
        with swapped(live, average):
            on_save(step)

    last_save = last = time.monotonic()
    stage.networks.train()
    while (progress := stage.budget.progress(step, seconds)) < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * learning_rate(step, progress)
        terms = stage.losses(step * team.size + team.rank, progress)
        loss = torch.stack(list(terms.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        team.average([p.grad for p in live if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(live, 1.0)
        if bool(torch.isfinite(norm)):
            optimiser.step()
        decay = min(stage.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in live], 1 - decay)
        step += 1
        now = time.monotonic()
        seconds, last = team.agree(seconds + now - last), now
        if step % log_every == 0 and team.rank == 0:
            log(folder, _summary(stage.name, step, seconds, progress, terms))
        if step == stop_after:
            save()
            raise KeyboardInterrupt
        if now - last_save >= save_every:
            save()
            last_save = last = time.monotonic()
    save()
    _copy(average, live)
    stage.networks.eval()


def learning_rate(step: int, progress: float) -> float:
    """A short warm-up, then half a cosine over the budget."""
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class swapped:
    """Within the block, the live parameters hold the averaged values."""

    def __init__(self, live: list[nn.Parameter], average: list[Tensor]) -> None:
        self.live, self.average = live, average

    def __enter__(self) -> None:
        self.kept = [p.detach().clone() for p in self.live]
        _copy(self.average, self.live)

    def __exit__(self, *error: object) -> None:
        _copy(self.kept, self.live)


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Any]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a)


def log(folder: Path, line: dict[str, Any]) -> None:
    """Add a line to ``log.jsonl`` and to the terminal."""
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    console.print(json.dumps(line), highlight=False, soft_wrap=True)


def _summary(
    name: str, step: int, seconds: float, progress: float, terms: Losses
) -> dict[str, Any]:
    values = {key: round(float(value.detach()), 6) for key, value in terms.items()}
    numbers = {"step": step, "minutes": round(seconds / 60, 2), "progress": round(progress, 3)}
    return {"stage": name, **numbers, **values}
