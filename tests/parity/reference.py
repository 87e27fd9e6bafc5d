"""Run diffusers over a row: in its own float32, and once more with every number in double.

The double run takes the same tables (rounded to float32, as diffusers keeps them), the same
timesteps and the same fresh noise; only the arithmetic is double.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from tests.golden.make_sampler_golden import FRESH_SEED
from tests.parity.ours import model_stand_in
from tests.parity.rows import LAYOUT_ARGUMENTS, STEP_ARGUMENTS, Row

Array = NDArray[Any]
_TORCH: Final = (torch.sin, torch.roll, torch.concatenate)
# These lay out a thousand steps in their constructor, only to throw them away.
_LAY_OUT_AT_ONCE: Final = frozenset(
    {
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "DPMSolverSDEScheduler",
    }
)


def make_scheduler(row: Row) -> Any:
    """Make diffusers' scheduler out of the row's configuration and lay the row's steps out."""
    with warnings.catch_warnings():  # diffusers' own use of torch and NumPy, its deprecations
        warnings.simplefilter("ignore")
        kind = _scheduler_class(row.class_name)
        with _lazy_constructor(kind):
            scheduler = kind.from_config(row.config)
        given = {k: v for k, v in row.arguments.items() if k in LAYOUT_ARGUMENTS}
        visits = row.visits
        if "sigmas" in visits:
            visits["sigmas"] = np.array(visits["sigmas"])  # UniPC takes no list
        scheduler.set_timesteps(**visits, **given)
        if hasattr(scheduler, "get_lms_coefficient"):
            scheduler.get_lms_coefficient = partial(_lms_coefficient, scheduler)
    return scheduler


_LMS_COEFFICIENTS: Final[dict[Any, float]] = {}


def _lms_coefficient(scheduler: Any, order: int, t: int, current_order: int) -> float:
    """Compute LMS's integral, which takes milliseconds, once for the rows that share sigmas."""
    sigmas = scheduler.sigmas[max(t - order, 0) : t + 2].numpy()
    key = sigmas.dtype, sigmas.tobytes(), order, min(t, order), current_order
    if key not in _LMS_COEFFICIENTS:
        compute = type(scheduler).get_lms_coefficient
        _LMS_COEFFICIENTS[key] = compute(scheduler, order, t, current_order)
    return _LMS_COEFFICIENTS[key]


@cache
def _scheduler_class(name: str) -> Any:
    import diffusers

    diffusers.logging.set_verbosity_error()
    return getattr(diffusers, name)


@contextlib.contextmanager
def _lazy_constructor(kind: Any) -> Iterator[None]:
    """Spare a constructor the layout of a thousand steps."""
    if kind.__name__ not in _LAY_OUT_AT_ONCE:
        yield
        return
    lay_out = kind.set_timesteps

    def few(self: Any, steps: int, *rest: Any) -> None:
        lay_out(self, 2, *rest)

    with mock.patch.object(kind, "set_timesteps", few):
        yield


def first_index(row: Row, order: int) -> int:
    """Where diffusers' image-to-image pipelines begin in the scheduler's timesteps."""
    kept = min(int(row.steps * row.strength), row.steps)
    return max(row.steps - kept, 0) * order


def float32_run(row: Row, noise: Array, clean: Array) -> tuple[list[Array], list[Array]]:
    """Step through diffusers' scheduler: the latents after each call, and the noise it drew."""
    with _CorrectlyRounded() if row.sampler == "dpmpp_sde" else contextlib.nullcontext():
        return _float32_run(row, noise, clean)


def _float32_run(row: Row, noise: Array, clean: Array) -> tuple[list[Array], list[Array]]:
    scheduler = make_scheduler(row)
    drawn: list[Array] = []
    generator = torch.Generator().manual_seed(FRESH_SEED)

    def draw(shape: Any, **_: Any) -> torch.Tensor:
        fresh = torch.randn(shape, generator=generator)
        drawn.append(fresh.numpy())
        return fresh

    with _fresh_noise(scheduler, draw), _brownian(scheduler, drawn, replay=False):
        return _walk(scheduler, row, torch.from_numpy(noise), torch.from_numpy(clean)), drawn


def float64_run(row: Row, noise: Array, clean: Array, drawn: list[Array]) -> list[Array]:
    """Step through it in double, with the fresh noise that the float32 run drew."""
    scheduler = make_scheduler(row)
    _promote(scheduler)
    replayed = iter([each.astype(np.float64) for each in drawn])

    def draw(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(next(replayed))

    doubles = [torch.from_numpy(array.astype(np.float64)) for array in (noise, clean)]
    with (
        _fresh_noise(scheduler, draw),
        _brownian(scheduler, drawn, replay=True),
        _default_dtype(_dtype_of_whole_numbers(row)),
        _OnlyDoubles(),
    ):
        return _walk(scheduler, row, *doubles)


def _walk(scheduler: Any, row: Row, noise: torch.Tensor, clean: torch.Tensor) -> list[Array]:
    """Call the model and the scheduler in turn, as diffusers' pipelines do."""
    first = first_index(row, scheduler.order)
    timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x = _first_state(scheduler, row, timesteps, noise, clean)
    scale = getattr(scheduler, "scale_model_input", None)
    extra = {k: v for k, v in row.arguments.items() if k in STEP_ARGUMENTS}
    latents = []
    for timestep in timesteps:
        scaled = x if scale is None else scale(x, timestep)
        raw = model_stand_in(scaled, float(timestep), row.learns_variance, *_TORCH)
        x = scheduler.step(raw, timestep, x, return_dict=False, **extra)[0]
        latents.append(x.numpy())
    return latents


def _first_state(
    scheduler: Any, row: Row, timesteps: Any, noise: torch.Tensor, clean: torch.Tensor
) -> torch.Tensor:
    """Scale the noise, or put it over the clean latents, as image-to-image does."""
    if row.strength == 1:
        scaled: torch.Tensor = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        return scaled
    latent_timestep = timesteps[:1].repeat(noise.shape[0])
    if hasattr(scheduler, "scale_noise"):
        noisy: torch.Tensor = scheduler.scale_noise(clean, timesteps[:1], noise)
        return noisy
    noisy = scheduler.add_noise(clean, noise, latent_timestep)
    return noisy


def _fresh_noise(scheduler: Any, draw: Callable[..., torch.Tensor]) -> Any:
    """Let a scheduler draw its fresh noise from a function."""
    module = sys.modules[type(scheduler).__module__]
    if "generator" not in inspect.signature(scheduler.step).parameters:
        return contextlib.nullcontext()
    return mock.patch.object(module, "randn_tensor", draw)


def _brownian(scheduler: Any, drawn: list[Array], *, replay: bool) -> Any:
    """Record or replay what DPMSolverSDE draws out of torchsde's Brownian interval.

    A path of Brownian motion is rough: at times that differ by a rounding it differs by far more.
    """
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "BrownianTreeNoiseSampler", None)
    if original is None:
        return contextlib.nullcontext()
    replayed = iter(drawn)

    def make(*arguments: Any, **options: Any) -> Callable[..., torch.Tensor]:
        sampler = None if replay else original(*arguments, **options)

        def noise(start: Any, end: Any) -> torch.Tensor:
            if sampler is None:
                return torch.from_numpy(next(replayed).astype(np.float64))
            with warnings.catch_warnings():  # the levels may leave torchsde's range by a bit
                warnings.simplefilter("ignore")
                fresh: torch.Tensor = sampler(start, end)
            drawn.append(fresh.numpy())
            return fresh

        return noise

    return mock.patch.object(module, "BrownianTreeNoiseSampler", make)


def _promote(scheduler: Any) -> None:
    """Turn a scheduler's float32 tables into doubles of the same value."""
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            setattr(scheduler, name, value.double())


def _dtype_of_whole_numbers(row: Row) -> torch.dtype:
    """What a whole timestep becomes in a product: TCD looks a rounded one up in its tables."""
    return torch.float32 if row.sampler == "tcd" else torch.float64


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _CorrectlyRounded(TorchFunctionMode):
    """Round PyTorch's float32 logarithms, exponentials and roots to the nearest.

    MKL's are a bit off for one number in a hundred, which ones depends on the processor. Nobody
    sees it but DPMSolverSDE: it looks its noise up by such numbers, and a Brownian path is rough.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        root = func in (torch.Tensor.pow, torch.Tensor.__pow__) and args[1] == 0.5
        if root or func in (torch.Tensor.log, torch.Tensor.exp):
            rounded: torch.Tensor = func(args[0].double(), *args[1:]).to(args[0].dtype)
            return rounded
        return func(*args, **(kwargs or {}))


class _OnlyDoubles(TorchFunctionMode):
    """Where a scheduler asks for float32, give it float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = torch.float64
        args = tuple(wide if arg is torch.float32 else arg for arg in args)
        kwargs = {k: wide if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)
