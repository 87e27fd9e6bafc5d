"""Gaussian noise as ``torch.randn`` draws it on an NVIDIA GPU, without PyTorch and without a GPU.

PyTorch's CUDA generator is Philox 4x32-10, a counter turned into random words by ten rounds of
multiplication. Thread ``i`` of the drawing kernel owns the counters ``(step, i)``; each gives four
words and, by Box-Muller, four normals. The words here are exact. The normals agree to about 1e-6
of the device's: it takes a fast approximate sine and cosine, whose bits no document gives.

A GPU has a limited number of threads, and a draw of more values than threads takes a second,
third and fourth normal from each. So a long draw depends on the model of the GPU; one that has a
thread for every value, which is each single picture on a large GPU, does not.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox); ATen
``native/cuda/DistributionTemplates.h`` (threads, offset), torch 2.13; cuRAND's
``curand_normal.h`` (Box-Muller). ``docs/noise.md`` lists what was compared with real GPUs.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgediffusion.errors import RequestError
from edgediffusion.noise import Array, Shape, checked_seed, empty

Words = NDArray[np.uint32]
Quad = tuple[Words, Words, Words, Words]

#: 132 multiprocessors of 2048 threads: H100 SXM, H200. Draws up to this size are the same on
#: every GPU that has a thread for each value.
REFERENCE_THREADS: Final = 132 * 2048

_THREAD_BLOCK: Final = 256  # CUDA threads are launched by this many
_NORMALS: Final = 4  # per counter
_CHUNK: Final = 1 << 14  # counters turned at once: the temporaries stay in the L2 cache
_MASK: Final = 0xFFFFFFFF
_ROUNDS: Final = 10
_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_TWO_PI: Final = float(np.float32(2 * math.pi))  # cuRAND's constant is a float


def _multiply(multiplier: np.uint64, words: Words) -> tuple[Words, Words]:
    """Multiply 32-bit words; return the high and the low half of the 64-bit products."""
    product = words.astype(np.uint64) * multiplier
    return (product >> np.uint64(32)).astype(np.uint32), product.astype(np.uint32)


def philox4x32(counter: Quad, key: tuple[int, int]) -> Quad:
    """Turn 128-bit counters into 128 random bits each, with the ten rounds of Philox 4x32-10.

    Parameters
    ----------
    counter : four uint32 arrays of one shape
        The counters' words, the lowest first.
    key : two int
        Low and high 32 bits of the seed.

    Returns
    -------
    four uint32 arrays of that shape
    """
    a, b, c, d = counter
    for i in range(_ROUNDS):
        low, high = ((part + i * step) & _MASK for part, step in zip(key, _KEY_STEPS, strict=True))
        a_high, a_low = _multiply(_MULTIPLIERS[0], a)
        c_high, c_low = _multiply(_MULTIPLIERS[1], c)
        a, b, c, d = c_high ^ b ^ np.uint32(low), c_low, a_high ^ d ^ np.uint32(high), a_low
    return a, b, c, d


def _box_muller(x: Words, y: Words) -> tuple[Array, Array]:
    """Turn word pairs into pairs of normals: cuRAND's inputs in float32, then float64 inside."""
    u = x.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)  # in [2**-33, 1]
    # The device multiplies and adds in one rounding; in float64 the product is exact.
    v = y.astype(np.float32).astype(np.float64) * (2**-32 * _TWO_PI) + 2**-33 * _TWO_PI
    radius = np.sqrt(-2 * np.log(u, dtype=np.float64))
    angle = v.astype(np.float32).astype(np.float64)
    return (radius * np.sin(angle)).astype(np.float32), (radius * np.cos(angle)).astype(np.float32)


class TorchCudaNoise:
    """A stream of normals: what one ``torch.Generator("cuda").manual_seed(seed)`` gives.

    Successive calls continue the stream as successive ``torch.randn(shape, generator=g,
    device="cuda")`` do.

    Parameters
    ----------
    seed : int
        From -2**63 to 2**64 - 1; all 64 bits count.
    threads : int
        How many threads the GPU runs at once: multiprocessors times threads of each, a multiple
        of 256. It matters to draws of more values than that. A100: 221184, RTX 4090: 196608,
        RTX 3090: 125952, T4: 40960.

    Raises
    ------
    RequestError
        If the seed is no int or out of range, or for an impossible number of threads.
    """

    def __init__(self, seed: int, threads: int = REFERENCE_THREADS) -> None:
        seed = checked_seed(seed)
        if threads < _THREAD_BLOCK or threads % _THREAD_BLOCK:
            raise RequestError(
                f"threads: got {threads}, expected a multiple of 256; pass the GPU's "
                "multiprocessors times threads of each, e.g. 132 * 2048"
            )
        self._key = (seed & _MASK, seed >> 32 & _MASK)
        self._threads = threads
        self._step = 0

    @property
    def offset(self) -> int:
        """What ``torch.cuda.Generator.get_offset()`` says at this point of the stream."""
        return _NORMALS * self._step

    def normal(self, shape: Shape) -> Array:
        """Draw the next standard normals.

        Parameters
        ----------
        shape : tuple of int
            Shape of the result.

        Returns
        -------
        ndarray of that shape, float32
            A new array.

        Raises
        ------
        RequestError
            For a negative extent.
        """
        flat = empty(shape)
        # PyTorch launches no more blocks than the draw needs.
        grid = min(self._threads, -(-flat.size // _THREAD_BLOCK) * _THREAD_BLOCK)
        for start in range(0, flat.size, max(1, _NORMALS * grid)):
            self._fill(flat[start : start + _NORMALS * grid], grid)
            self._step += 1
        return flat.reshape(shape)

    __call__ = normal  # a NoiseSource

    def _fill(self, part: Array, grid: int) -> None:
        """Fill up to four values per thread: first one of each thread, then a second, ..."""
        for start in range(0, min(grid, part.size), _CHUNK):
            stop = min(start + _CHUNK, grid, part.size)
            x, y, z, w = self._words(start, stop)
            normals = [*_box_muller(x, y)]
            if part.size > 2 * grid:
                normals += _box_muller(z, w)
            for i, values in enumerate(normals):
                place = part[i * grid + start : i * grid + stop]
                place[:] = values[: place.size]

    def _words(self, start: int, stop: int) -> Quad:
        """Four words of each of these threads, at this step."""
        thread = np.arange(start, stop, dtype=np.uint32)
        low = np.full_like(thread, self._step & _MASK)
        high = np.full_like(thread, self._step >> 32)
        return philox4x32((low, high, thread, np.zeros_like(thread)), self._key)
