"""Which layers of a network cannot compute in float16, found by watching float32 compute.

A half module's activations are finite if its float32 twin's stay within float16's range, so one
float32 run says what a float16 run would say, in float32's speed: CPUs have no fast float16. The
watch sees every operator that PyTorch dispatches, attention scores and softmax included (the
fused attention kernel is switched off for it), not only what modules return.

A layer is a module without the modules inside it: what its own operators take and give. So of a
residual block whose sum is too large, only the sum is such a layer, not the convolutions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from edgediffusion.manifest import STAYS_FP32

FLOAT16_MAX: Final = 65504.0

HEADROOM: Final = 2.0
"""Prompts and noise that the export does not try may go this much further than those it tries."""

LEAST_LEFT: Final = 0.25
"""The share of the multiplications that float16 must keep. Below it there is little speed to win
for a gate that is 300 times wider than float32's."""

_NAMED: Final = 3
"""Layers that a note names; the others are counted."""

_MASK: Final = 1e38
"""Attention masks hold float32's lowest number or minus infinity, and are not overflows: float16
has a lowest number and an infinity of its own."""


@dataclass(frozen=True)
class Overflow:
    """Where float16 would not do.

    peaks : for each such layer, or weight, the largest number in it, in the order they ran.
    layers : how many layers the network has.
    left : the share of the multiplications that the other layers do.
    """

    peaks: Mapping[str, float]
    layers: int
    left: float

    @property
    def leaves_enough(self) -> bool:
        """Whether enough is left to compute it in float16, with these layers in float32."""
        return self.left >= LEAST_LEFT

    def __str__(self) -> str:
        first = list(self.peaks.items())[:_NAMED]
        said = ", ".join(f"{layer or 'the network itself'} reaches {x:.3g}" for layer, x in first)
        more = len(self.peaks) - len(first)
        return (
            f"{said}{f' and {more} more' if more else ''}, float16 ends at {FLOAT16_MAX:.0f} "
            f"(with headroom {HEADROOM:g})"
        )

    def note_of_mixed(self) -> str:
        """What a bundle says of graphs that compute only these layers in float32."""
        return (
            f"{len(self.peaks)} of {self.layers} layers compute in float32: {self}; the others, "
            f"with {self.left:.0%} of the multiplications, compute in float16"
        )

    def note_of_whole(self, why: str = "") -> str:
        """What it says of graphs that compute in float32 altogether."""
        if not why and not self.leaves_enough:
            why = f"{self.left:.0%} of the multiplications would be left to float16"
        return f"{STAYS_FP32}: {self}; {why}"


def find_overflow(module: torch.nn.Module, run: Callable[[], float]) -> Overflow | None:
    """Return where ``module`` leaves float16's range: in its weights or while ``run`` runs it.

    run : returns the largest number that a half graph would have to take or give.
    """
    for name, parameter in module.named_parameters():
        peak = _peak(parameter)
        if peak > FLOAT16_MAX:  # no graph could keep it in float16: nothing is left
            return Overflow({name: peak}, layers=1, left=0.0)
    watch = _Watch(module)
    with _told_where(module, watch), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), watch:
        peak = run()
    if peak * HEADROOM > FLOAT16_MAX:
        return Overflow({"an input or output": peak}, layers=1, left=0.0)
    return watch.overflow


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Remembers the layers whose operators take or give what is too large.

    inside : the names of the running modules, the innermost last. What no module runs counts as
    the outermost one's, whose name is empty.
    work : the floating-point operations of each layer's products and convolutions.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.inside: list[str] = [""]
        self.peaks: dict[str, float] = {}
        self.work: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and look at what comes out, and at what went in."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Until something came out too large, nothing too large goes in.
        looked_at = (args, kwargs, out) if self.peaks else out
        peak = max(map(_peak, self._activations(looked_at)), default=0.0)
        layer = self.inside[-1]
        if peak * HEADROOM > FLOAT16_MAX:
            self.peaks[layer] = max(peak, self.peaks.get(layer, 0.0))
        count = flop_registry.get(func._overloadpacket)
        self.work[layer] += count(*args, **kwargs, out_val=out) if count else 0
        return out

    @property
    def overflow(self) -> Overflow | None:
        """What was found."""
        if not self.peaks:
            return None
        left = sum(work for layer, work in self.work.items() if layer not in self.peaks)
        return Overflow(self.peaks, len(self.work), left / max(self.work.total(), 1))

    def _activations(self, found: Any) -> Iterator[torch.Tensor]:
        """The floating-point tensors; views of weights are no activations."""
        for tensor in tree_leaves(found):
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

        def enter(_module: Any, _inputs: Any, name: str = name) -> None:
            watch.inside.append(name)

        def leave(_module: Any, _inputs: Any, _output: Any) -> None:
            watch.inside.pop()

        handles.append(child.register_forward_pre_hook(enter))
        handles.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
