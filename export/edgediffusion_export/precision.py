"""Which networks can compute in float16, found by watching float32 compute.

A half module's activations are finite if its float32 twin's stay within float16's range, so one
float32 run says what a float16 run would say, in float32's speed: CPUs have no fast float16. The
watch sees every operator that PyTorch dispatches, attention scores and softmax included (the
fused attention kernel is switched off for it), not only what modules return.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from edgediffusion.manifest import STAYS_FP32

FLOAT16_MAX: Final = 65504.0

HEADROOM: Final = 2.0
"""Prompts and noise that the export does not try may go this much further than those it tries."""

_MASK: Final = 1e38
"""Attention masks hold float32's lowest number or minus infinity, and are not overflows: float16
has a lowest number and an infinity of its own."""


@dataclass(frozen=True)
class Overflow:
    """The first place where float16 would not do."""

    module: str
    peak: float

    def __str__(self) -> str:
        return (
            f"{STAYS_FP32}: {self.module} reaches {self.peak:.3g}, float16 ends at "
            f"{FLOAT16_MAX:.0f} (with headroom {HEADROOM:g})"
        )


def find_overflow(module: torch.nn.Module, run: Callable[[], Any]) -> Overflow | None:
    """Return the first overflow of ``module``, in its weights or while ``run`` runs it."""
    for name, parameter in module.named_parameters():
        peak = _peak(parameter)
        if peak > FLOAT16_MAX:
            return Overflow(name, peak)
    watch = _Watch(module)
    with _told_where(module, watch), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), watch:
        run()
    return watch.overflow


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Remembers the first operator whose result is too large, and the module it belongs to."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.inside: list[str] = []
        self.overflow: Overflow | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and look at what comes out."""
        out = func(*args, **(kwargs or {}))
        if self.overflow is None:
            peak = max((_peak(t) for t in self._activations(out)), default=0.0)
            if peak * HEADROOM > FLOAT16_MAX:
                self.overflow = Overflow(self.inside[-1] if self.inside else "the input", peak)
        return out

    def _activations(self, out: Any) -> Iterator[torch.Tensor]:
        """The floating-point results; views of weights are no activations."""
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            is_float = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
            if is_float and tensor.numel() and not self._is_weight(tensor):
                yield tensor

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.weights


def _peak(tensor: torch.Tensor) -> float:
    """The largest magnitude, masks left out; NaN and infinity count as infinite."""
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    if low < -_MASK:
        rest = tensor[tensor >= -_MASK]
        return _peak(rest) if rest.numel() else 0.0
    peak = max(-low, high)
    return peak if math.isfinite(peak) else math.inf


@contextmanager
def _told_where(module: torch.nn.Module, watch: _Watch) -> Iterator[None]:
    """Keep the name of the innermost running module on ``watch.inside``."""
    handles = []
    for name, child in module.named_modules():
        say = name or type(module).__name__

        def enter(_module: Any, _inputs: Any, say: str = say) -> None:
            watch.inside.append(say)

        def leave(_module: Any, _inputs: Any, _output: Any) -> None:
            watch.inside.pop()

        handles.append(child.register_forward_pre_hook(enter))
        handles.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
