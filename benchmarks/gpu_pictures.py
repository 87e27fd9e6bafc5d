"""Whole pictures on a GPU: two prompts, fifty guided Euler steps, the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter_ns as time_ns
from typing import Any, Final

import numpy as np
import torch

from benchmarks.architectures import ARCHITECTURES
from benchmarks.checkpoints import Architecture
from benchmarks.gpu_contenders import Contender, OpenEngine, engines, held_weights, traced
from benchmarks.gpu_graphs import Subject, prepared
from benchmarks.gpu_pieces import EAGER, OURS, PARTS, RIVAL, STEPS, Piece
from benchmarks.workloads import SCHEDULER
from edgediffusion.calls import Call
from edgediffusion.denoiser import Denoiser
from edgediffusion.engine import Engine
from edgediffusion.image import to_pixels
from edgediffusion.manifest import PLAIN, TEXT_ENCODERS
from edgediffusion.noise import noise_source
from edgediffusion.samplers import trajectory
from edgediffusion.schedule import schedule_from_config
from edgediffusion.text_conditions import join_states, time_ids, unet_rows
from edgediffusion.text_encoder import States
from edgediffusion.unet import Unet

GUIDANCE: Final = 7.5
SIGMA: Final = 14.6

Subjects = Mapping[str, Subject]
Picture = Callable[[], object]


@contextmanager
def prepared_parts(piece: Piece) -> Iterator[dict[str, Subject]]:
    """Build and trace the networks of a picture."""
    with ExitStack() as stack:
        pieces = {part: replace(piece, part=part) for part in PARTS[piece.architecture]}
        yield {part: stack.enter_context(prepared(each)) for part, each in pieces.items()}


def picture_contenders(
    own_share: list[float], place: str = "cuda"
) -> Iterator[Contender[Subjects]]:
    """Yield all that make whole pictures; ``own_share`` is that of the first, as in ``ours``."""
    for name, opening in engines():
        shares = own_share if name == OURS else []
        yield Contender(name, partial(_opened, opening, shares))

    def held(subjects: Subjects) -> int:
        return held_weights(*subjects.values(), place=place)

    for name, compiled in ((RIVAL, True), (EAGER, False)):
        yield Contender(name, partial(_opened_rivals, compiled, place), held)


@contextmanager
def _opened(opening: OpenEngine, own: list[float], subjects: Subjects) -> Iterator[Picture]:
    with ExitStack() as stack:
        opened = {part: stack.enter_context(opening(each)) for part, each in subjects.items()}
        yield ours(subjects, opened, own)


@contextmanager
def _opened_rivals(compiled: bool, place: str, subjects: Subjects) -> Iterator[Picture]:
    """Dynamo remembers what it compiled by code, which all networks share: it must forget it."""
    try:
        yield rivals(subjects, compiled=compiled, place=place)
    finally:
        torch.compiler.reset()


def ours(
    subjects: Subjects, engines: Mapping[str, Engine], own_share: list[float], steps: int = STEPS
) -> Picture:
    """A picture as the Pipeline makes it, without its tokenizer.

    own_share : gets, for each picture, the part of its steps that was not spent in ``Engine``
        calls: the sampler, guidance, and what puts the UNet's inputs together.
    """
    config = {**_architecture(subjects).scheduler, **SCHEDULER}
    schedule = schedule_from_config(config, steps=steps)
    return partial(_ours, subjects, engines, schedule, own_share)


def _ours(
    subjects: Subjects, engines: Mapping[str, Engine], schedule: Any, own: list[float]
) -> Any:
    texts = _texts(subjects)
    states = [
        join_states([States(*engines[name](**subjects[name].inputs).values()) for name in texts])
        for _ in range(2)
    ]
    rows = unet_rows(states, _size(subjects), "clip" if len(texts) == 1 else "clip-pair")
    unet = Unet({2: engines["unet"]})
    calls = [Call(guided=True)] * len(schedule.rows)
    denoiser = Denoiser({PLAIN: unet}, calls, rows, GUIDANCE)
    noise = noise_source([7])
    shape = (1, *subjects["unet"].spec.inputs[0].shape[1:])
    start = noise(shape)
    begun = time_ns()
    for state in trajectory(schedule, denoiser, start, rng=noise):
        latents = state.latents
    own.append(1 - sum(denoiser.engine_ms) / ((time_ns() - begun) / 1e6))
    scaled = (latents / np.float32(_scale(subjects))).astype(np.float16)
    return to_pixels(engines["vae_decoder"](latent_sample=scaled)["sample"])


def rivals(subjects: Subjects, *, compiled: bool, place: str, steps: int = STEPS) -> Picture:
    """The same in PyTorch, latents and all on the GPU; only the pixels come back."""
    nets = {part: traced(each, place, compiled=compiled) for part, each in subjects.items()}
    run = partial(_rivals, subjects, nets, place, steps)
    for _ in range(3):
        run()
    return run


def _rivals(subjects: Subjects, nets: Mapping[str, Any], place: str, steps: int) -> Any:
    texts = _texts(subjects)
    tokens = [torch.from_numpy(subjects[n].inputs["input_ids"]).to(place) for n in texts]
    shape = (1, *subjects["unet"].spec.inputs[0].shape[1:])
    levels = np.linspace(SIGMA, 0, steps + 1).tolist()
    with torch.no_grad():
        made = [
            [
                [out.clone() for out in nets[name](ids)]
                for name, ids in zip(texts, tokens, strict=True)
            ]
            for _ in range(2)
        ]
        given = [torch.cat([torch.cat([out[0] for out in each], dim=-1) for each in made])]
        if len(texts) > 1:
            sizes = torch.from_numpy(time_ids(_size(subjects))).to(place)
            given += [torch.cat([each[-1][1] for each in made]).float(), sizes.repeat(2, 1)]
        x = torch.randn(shape, device=place) * SIGMA
        for level, after in itertools.pairwise(levels):
            seen = torch.cat([x, x]).half() / (level**2 + 1) ** 0.5
            moment = torch.full((1,), 999 * level / SIGMA, device=place)
            negative, positive = nets["unet"](seen, moment, *given).float().chunk(2)
            x = x + (after - level) * (negative + GUIDANCE * (positive - negative))
        picture = nets["vae_decoder"]((x / _scale(subjects)).clamp(-60, 60).half())
        return ((picture / 2 + 0.5).clamp(0, 1) * 255).byte().cpu().numpy()


def _architecture(subjects: Subjects) -> Architecture:
    return ARCHITECTURES[subjects["unet"].piece.architecture]


def _texts(subjects: Subjects) -> list[str]:
    return [name for name in TEXT_ENCODERS if name in subjects]


def _size(subjects: Subjects) -> tuple[int, int]:
    size = subjects["unet"].spec.size
    assert size is not None
    return size


def _scale(subjects: Subjects) -> float:
    return float(_architecture(subjects).models["vae"].config.get("scaling_factor", 0.18215))
