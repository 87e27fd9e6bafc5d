"""Noise from one Brownian path, for DPM++ SDE: what torchsde draws, without PyTorch.

A solver that takes fresh noise between two noise levels asks for the increment of a Brownian path
between them. So noise of a coarse step is the sum of the noise of its fine steps, and a picture
keeps its look when the number of steps changes. torchsde builds the path as a binary tree: it
draws the increment over the whole range, and each half follows from its parent's by the Brownian
bridge, with a normal of a generator whose seed is hashed from its place in the tree. A level is
found by halving until it is hit on a grid of 1e-6.

Here no tree is kept: a node is a function of its place, so only a few recent nodes are stored.
The increments are torchsde's bit for bit. The noise may differ by one bit in all its values, where
PyTorch's float32 square root of the step's width is not the nearest one (0.7 % of the steps).

Sources: torchsde 0.2.6 ``_brownian/brownian_interval.py`` (``halfway_tree=True, tol=1e-6,
pool_size=24``); ``BrownianTreeNoiseSampler`` of k-diffusion and of diffusers 0.42
(``scheduling_dpmsolver_sde.py``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.noise import NoiseKind, Shape, Stream, checked_seed, noise_stream

Array = NDArray[np.float32]
Between = Callable[[float, float], Array]

_DIGITS: Final = 6  # levels are rounded to 1e-6
_POOL: Final = 24  # torchsde's size of SeedSequence's entropy pool
_CACHED: Final = 64  # halvings kept: two levels take about 24 each
# Levels come from float32 logarithms and exponentials, which may leave the range by a few bits.
_SLACK: Final = 1e-4


def _f32(value: float) -> float:
    """Round to float32."""
    return float(np.float32(value))


class _Node(NamedTuple):
    """A piece of the path: place in the tree, ends, and the increment between them."""

    depth: int
    place: int  # from the left, among the nodes of this depth
    start: float
    end: float
    increment: Array


class _Path:
    """One Brownian path of arrays over ``[start, end]``, equal to torchsde's for the same seed."""

    def __init__(self, shape: Shape, seed: int, start: float, end: float, stream: Stream) -> None:
        self._shape = shape
        self._seed = checked_seed(seed) % 2**64  # as PyTorch reads a negative seed
        self._stream = stream
        self._lefts: OrderedDict[tuple[int, int], Array] = OrderedDict()
        whole = self._normal(()) * math.sqrt(end - start)
        self._root = _Node(0, 0, round(start, _DIGITS), round(end, _DIGITS), whole)

    def between(self, start: float, end: float) -> Array:
        """Increment of the path; torchsde's order of summation, so that every bit is the same."""
        inside = (min(max(at, self._root.start), self._root.end) for at in (start, end))
        first, last = (round(at, _DIGITS) for at in inside)
        if first == last:
            raise RequestError(
                f"sigma: got {start} and {end}, expected levels at least 1e-6 apart; take fewer "
                "steps"
            )
        pieces = self._pieces(self._root, first, last)
        total = next(pieces)
        for piece in pieces:
            total = total + piece
        return total

    def _pieces(self, node: _Node, start: float, end: float) -> Iterator[Array]:
        """Yield the increments of the largest nodes that make up ``[start, end]``, in order."""
        if (start, end) == (node.start, node.end):
            yield node.increment
            return
        left, right = self._halves(node)
        if start < left.end:
            yield from self._pieces(left, start, min(end, left.end))
        if end > left.end:
            yield from self._pieces(right, max(start, left.end), end)

    def _halves(self, node: _Node) -> tuple[_Node, _Node]:
        """Split a node in the middle."""
        middle = round(0.5 * (node.end + node.start), _DIGITS)
        left = self._left(node, middle)
        depth, place = node.depth + 1, 2 * node.place
        return (
            _Node(depth, place, node.start, middle, left),
            _Node(depth, place + 1, middle, node.end, node.increment - left),
        )

    def _left(self, node: _Node, middle: float) -> Array:
        """Increment of a node's left half, kept for the next time."""
        key = (node.depth, node.place)
        if key in self._lefts:
            self._lefts.move_to_end(key)
            return self._lefts[key]
        left = self._lefts[key] = self._bridge(node, middle)
        if len(self._lefts) > _CACHED:
            self._lefts.popitem(last=False)
        return left

    def _bridge(self, node: _Node, middle: float) -> Array:
        """Draw the increment of the left half, given the whole's: a Brownian bridge."""
        before, after = middle - node.start, node.end - middle
        per_length = 1 / (node.end - node.start)
        deviation = math.sqrt(before * after * per_length)
        noise = self._normal((node.place, node.depth))
        return before * node.increment * per_length + deviation * noise

    def _normal(self, key: tuple[int, ...]) -> Array:
        """Draw the normals of a place in the tree."""
        hashed = np.random.SeedSequence(self._seed, spawn_key=key, pool_size=_POOL)
        return self._stream(int(hashed.generate_state(1)[0]))(self._shape)


def sde_levels(sigma: float, sigma_next: float) -> tuple[float, float, float]:
    """Levels between which one step of diffusers' DPM++ SDE asks for noise.

    diffusers takes them through float32 logarithms and back, which moves them by a few bits. A
    path varies as the square root of the distance, so that one bit is seen in the noise: 1e-6 of
    sigma is 1e-3 of a normal.

    Parameters
    ----------
    sigma, sigma_next : float
        The noise levels of the step, above 0.

    Returns
    -------
    tuple of three float
        The first level, the one in the middle of their logarithms, and the next.
    """
    start, end = (_f32(-math.log(_f32(level))) for level in (sigma, sigma_next))
    middle = _f32(start + _f32(end - start) * 0.5)
    first, half, last = (_f32(math.exp(-time)) for time in (start, middle, end))
    return first, half, last


def brownian_noise(
    shape: Shape,
    seed: int | Sequence[int],
    sigma_min: float,
    sigma_max: float,
    kind: NoiseKind = "torch-cpu",
) -> Between:
    """Noise between noise levels, as ``BrownianTreeNoiseSampler`` of diffusers gives.

    Parameters
    ----------
    shape : tuple of int
        Shape of the latents, the batch first.
    seed : int or sequence of int
        An int draws the batch as one tensor, as diffusers does; a sequence gives each image a
        path of its own, so that it does not depend on its neighbours.
    sigma_min, sigma_max : float
        The smallest noise level above 0 and the largest, of the whole schedule.
    kind : str
        ``torch-cpu`` or ``torch-cuda``: where the reference draws, see `noise_stream`.

    Returns
    -------
    callable
        ``noise(sigma, sigma_next)``: ndarray of ``shape``, float32, of unit variance. The same
        two levels always give the same noise. Levels are rounded to float32, as in diffusers.
        It keeps up to 64 arrays of ``shape``, however many steps there are.

    Raises
    ------
    RequestError
        For levels that are no range or, from the returned callable, outside of it or equal; for
        a shape, seeds or a kind that cannot be drawn.
    """
    low, high = (_f32(level) for level in (sigma_min, sigma_max))
    if not 0 <= low <= high < math.inf:
        raise RequestError(
            f"sigma range: got {sigma_min} to {sigma_max}, expected 0 <= sigma_min <= sigma_max; "
            "pass the schedule's smallest level above 0 and its largest"
        )
    stream = noise_stream(kind)
    if not isinstance(seed, Sequence):
        return _scaled(_Path(shape, seed, low, high, stream).between, low, high)
    if not shape or shape[0] != len(seed):
        raise RequestError(
            f"shape: got {shape} for {len(seed)} seed(s), expected the batch first; "
            "pass one seed per image"
        )
    paths = [_Path(shape[1:], one, low, high, stream) for one in seed]
    return _scaled(lambda a, b: np.stack([path.between(a, b) for path in paths]), low, high)


def _scaled(between: Between, low: float, high: float) -> Between:
    """Turn increments, from the lower to the higher level, into noise of unit variance."""

    def noise(sigma: float, sigma_next: float) -> Array:
        start, end = sorted(_f32(level) for level in (sigma, sigma_next))
        if not (low - _SLACK * low <= start and end <= high + _SLACK * high):
            raise RequestError(
                f"sigma: got {sigma} to {sigma_next}, expected levels from {low:.6g} to "
                f"{high:.6g}; make the noise with the range of the whole schedule"
            )
        sign = 1.0 if sigma < sigma_next else -1.0
        unit: Array = between(start, end) * sign / np.sqrt(np.float32(end) - np.float32(start))
        return unit

    return noise
