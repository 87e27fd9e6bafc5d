"""Gaussian noise that equals ``torch.randn`` on an x86-64 CPU, bit for bit, without PyTorch.

PyTorch draws from MT19937. Sixteen values and more go through a vectorised Box-Muller transform
in float32 (AVX2, also on AVX-512 machines), fewer through a scalar one in float64. The float32
transform uses the Cephes polynomials with fused multiply-add; an FMA is emulated here in float64,
where the product of two float32 values is exact. So the result is the same on every platform,
which PyTorch's own is not: its builds without AVX2 (ARM) differ by up to 1.9e-6.

What PyTorch draws on a GPU is another stream: `edgediffusion.philox`. ``noise_source`` chooses by
name. ``docs/noise.md`` says which noise equals what.

Sources: ATen ``native/cpu/DistributionTemplates.h`` (``normal_fill_AVX2``), ``avx_mathfun.h``,
``core/MT19937RNGEngine.h``, ``core/DistributionsHelper.h``; compared with torch 2.13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgediffusion.errors import RequestError, choices

Array = NDArray[np.float32]
Floats = NDArray[np.float32] | NDArray[np.float64]
Shape = tuple[int, ...]
NoiseSource = Callable[[Shape], Array]
NoiseLayout = Literal["per-image", "diffusers-batch"]
NoiseKind = Literal["torch-cpu", "torch-cuda"]
Precision = Literal["float32", "float16", "bfloat16"]

_BLOCK: Final = 16  # values per Box-Muller block: 8 radii and 8 angles
_CHUNK: Final = 1 << 14  # values transformed at once: the temporaries stay in the L2 cache


def _f32(*values: float) -> tuple[float, ...]:
    """Round constants to float32, as the C source's ``f`` suffix does."""
    return tuple(float(np.float32(value)) for value in values)


_TWO_PI: Final = np.float32(2 * math.pi)
_SQRT_HALF: Final = np.float32(0.707106781186547524)
_LOG_POLY: Final = _f32(
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_LN2_LOW: Final = np.float32(-2.12194440e-4)
_LN2_HIGH: Final = 0.693359375  # exact in float32
_FOUR_OVER_PI: Final = np.float32(1.27323954473516)
_PI_OVER_4_PARTS: Final = _f32(-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)
_COS_POLY: Final = _f32(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN_POLY: Final = _f32(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def _fma(a: Floats, b: Floats | float, c: Floats | float) -> Array:
    """``a * b + c`` rounded once: the float64 product of float32 values is exact."""
    wide = np.multiply(a, b, dtype=np.float64)
    wide += c
    return wide.astype(np.float32)


def _horner(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Evaluate a polynomial at ``x``, highest power first, every step an FMA."""
    x64 = x.astype(np.float64)
    wide = x64 * coefficients[0]
    wide += coefficients[1]
    for coefficient in coefficients[2:]:
        wide = wide.astype(np.float32) * x64
        wide += coefficient
    return wide.astype(np.float32)


def _log(x: Array) -> Array:
    """Natural logarithm as Cephes' ``logf`` with FMA computes it; ``x`` in [2**-24, 1]."""
    bits = x.view(np.int32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).view(np.float32)  # in [0.5, 1)
    small = mantissa < _SQRT_HALF
    e = ((bits >> 23) - (small + np.int32(126))).astype(np.float32)
    t = (mantissa - np.float32(1)) + mantissa * small
    z = t * t
    y = _fma(_horner(t, _LOG_POLY) * t, z, e * _LN2_LOW)
    y -= np.float32(0.5) * z
    return _fma(e, _LN2_HIGH, t + y)


def _sin_cos(x: Array) -> tuple[Array, Array]:
    """Sine and cosine as Cephes' ``sincosf`` with FMA computes them; ``x`` >= 0."""
    octant = ((x * _FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float64)
    for part in _PI_OVER_4_PARTS:
        x = _fma(y, part, x)
    z = x * x
    c = _fma(_horner(z, _COS_POLY) * z, z, np.float32(-0.5) * z) + np.float32(1)
    s = _fma(_horner(z, _SIN_POLY) * z, x, x)
    # In every other octant sine and cosine swap; a mask of their differing bits is much faster
    # than np.where.
    sin, cos = s.view(np.int32), c.view(np.int32)
    differing = (sin ^ cos) & -(octant >> 1 & 1)
    # The octant's bit 2 is the sign; shifted to bit 31 it flips the float's own sign bit.
    sin = sin ^ differing ^ (octant & 4) << 29
    cos = cos ^ differing ^ (~(octant - 2) & 4) << 29
    return sin.view(np.float32), cos.view(np.float32)


def _box_muller(words: NDArray[np.uint32], out: Array) -> None:
    """Turn 32-bit words into normals; in each block of 16 the halves are radii and angles."""
    whole = (words & np.uint32(0xFFFFFF)).view(np.int32)  # signed: NumPy converts that faster
    uniform = whole.astype(np.float32) * np.float32(2**-24)
    pairs = uniform.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - pairs[:, 0]))
    sin, cos = _sin_cos(_TWO_PI * pairs[:, 1])
    blocks = out.reshape(-1, 2, _BLOCK // 2)
    np.multiply(radius, cos, out=blocks[:, 0])
    np.multiply(radius, sin, out=blocks[:, 1])


def checked_seed(seed: int) -> int:
    """Return the seed as an int; refuse what ``torch.Generator.manual_seed`` refuses."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise RequestError(
            f"seed: got {seed!r} of type {type(seed).__name__}, expected an int; pass e.g. seed=0"
        )
    if not -(2**63) <= seed < 2**64:
        raise RequestError(
            f"seed: got {seed}, expected -2**63 <= seed < 2**64; pass seed % 2**64 instead"
        )
    return int(seed)


def empty(shape: Shape) -> Array:
    """Make the flat array that a draw of this shape fills; a negative extent is refused."""
    if any(extent < 0 for extent in shape):
        raise RequestError(f"shape: got {shape}, expected extents >= 0; pass (1, 4, 64, 64)")
    return np.empty(math.prod(shape), dtype=np.float32)


def _rounded(values: Array, precision: Precision) -> Array:
    """Round float32 values to another type's, to the nearest and to even, as PyTorch casts."""
    if precision == "float32":
        return values
    if precision == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)  # bfloat16 is the upper half of a float32; none is NaN here
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


class TorchCpuNoise:
    """A stream of normals: what one ``torch.Generator().manual_seed(seed)`` on the CPU gives.

    Successive calls continue the stream as successive ``torch.randn(shape, generator=g)`` do.

    Parameters
    ----------
    seed : int
        From -2**63 to 2**64 - 1. PyTorch's engine takes its low 32 bits only, so seeds that
        differ by a multiple of 2**32 give the same noise.

    Raises
    ------
    RequestError
        If the seed is no int or out of range.
    """

    def __init__(self, seed: int) -> None:
        # RandomState seeds MT19937 by the plain recurrence (init_genrand), as PyTorch does; the
        # newer bit generators hash the seed first. NumPy keeps it frozen for ever (NEP 19).
        self._engine = np.random.RandomState(checked_seed(seed) & 0xFFFFFFFF)
        self._cached: float | None = None  # second half of a scalar Box-Muller pair

    def normal(self, shape: Shape, precision: Precision = "float32") -> Array:
        """Draw the next standard normals.

        Parameters
        ----------
        shape : tuple of int
            Shape of the result.
        precision : str
            The ``dtype=`` of the ``torch.randn`` to equal. ``float16`` and ``bfloat16`` are drawn
            in float32 and rounded; the result stays float32 and holds the rounded values.

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
        if flat.size < _BLOCK:
            flat[:] = [self._scalar() for _ in range(flat.size)]
        else:
            self._fill(flat, precision)
        return _rounded(flat, precision).reshape(shape)

    __call__ = normal  # a NoiseSource

    def _words(self, count: int) -> NDArray[np.uint32]:
        """Draw the engine's next 32-bit outputs."""
        return self._engine.randint(0, 2**32, count, dtype=np.uint32)

    def _fill(self, flat: Array, precision: Precision) -> None:
        """Fill 16 values or more. A ragged tail is drawn again, into the last 16 places."""
        whole = flat.size - flat.size % _BLOCK
        for start in range(0, whole, _CHUNK):
            part = flat[start : min(start + _CHUNK, whole)]
            _box_muller(self._words(part.size), part)
        if whole != flat.size:
            if precision == "float32":
                self._words(flat.size - whole)  # PyTorch's first draw fills this tail too
            _box_muller(self._words(_BLOCK), flat[-_BLOCK:])

    def _scalar(self) -> float:
        """Draw one value in float64; pairs are made at once, the second waits for the next call."""
        if self._cached is not None:
            value, self._cached = self._cached, None
            return value
        high, low, high_2, low_2 = (int(word) for word in self._words(4))
        u1 = ((high << 32 | low) & (2**53 - 1)) * 2.0**-53
        u2 = ((high_2 << 32 | low_2) & (2**53 - 1)) * 2.0**-53
        radius = math.sqrt(-2.0 * math.log1p(-u2))
        angle = 2.0 * math.pi * u1
        self._cached = radius * math.sin(angle)
        return radius * math.cos(angle)


Stream = Callable[[int], NoiseSource]  # makes the noise of one seed


class BatchNoise:
    """One generator per image, so that an image does not depend on its neighbours in the batch.

    Equals diffusers' ``randn_tensor`` with a list of generators: image i is the ``(1, ...)`` draw
    of its own seed, for the initial latents and for every fresh draw after them.

    Parameters
    ----------
    seeds : sequence of int
        One seed per image.
    stream : callable
        Makes the noise of one seed: `TorchCpuNoise`, `TorchCudaNoise`, or one of your own.

    Raises
    ------
    RequestError
        If there is no seed, or a seed that the stream refuses.
    """

    def __init__(self, seeds: Sequence[int], stream: Stream = TorchCpuNoise) -> None:
        if not seeds:
            raise RequestError("seeds: got none, expected one per image; pass e.g. [0]")
        self._images = [stream(seed) for seed in seeds]

    def __call__(self, shape: Shape) -> Array:
        """Draw float32 normals of ``shape``, whose first extent is the number of seeds."""
        if not shape or shape[0] != len(self._images):
            raise RequestError(
                f"shape: got {shape} for {len(self._images)} seed(s), expected the batch first; "
                "pass one seed per image"
            )
        out = empty(shape).reshape(shape)
        for image, noise in zip(out, self._images, strict=True):
            image[...] = noise(image.shape)
        return out


_LAYOUTS: Final = ("per-image", "diffusers-batch")
_KINDS: Final = ("torch-cpu", "torch-cuda")


def noise_stream(kind: NoiseKind = "torch-cpu") -> Stream:
    """Choose by name what makes the noise of one seed; RequestError for an unknown name.

    ``torch-cpu`` is `TorchCpuNoise`, ``torch-cuda`` is `TorchCudaNoise` of a large GPU.
    """
    if kind not in _KINDS:
        raise RequestError(f"noise: got {kind!r}; {choices(kind, _KINDS)}")
    if kind == "torch-cpu":
        return TorchCpuNoise
    from edgediffusion.philox import TorchCudaNoise  # here, because it imports this module

    return TorchCudaNoise


def noise_source(
    seeds: Sequence[int], layout: NoiseLayout = "per-image", kind: NoiseKind = "torch-cpu"
) -> NoiseSource:
    """Make the source of a batch's noise: initial latents first, then each fresh draw.

    Parameters
    ----------
    seeds : sequence of int
        One per image; ``diffusers-batch`` uses the first alone.
    layout : str
        ``per-image``: image i equals the single picture of its seed. ``diffusers-batch``: one
        generator draws the batch as one tensor, as diffusers does with a single generator.
    kind : str
        ``torch-cpu`` or ``torch-cuda``, see `noise_stream`.

    Returns
    -------
    callable
        Takes a shape ``(batch, ...)``, returns float32 normals and moves on.

    Raises
    ------
    RequestError
        For an unknown layout or kind, no seeds, or a seed that `TorchCpuNoise` refuses.
    """
    if layout not in _LAYOUTS:
        raise RequestError(f"noise layout: got {layout!r}; {choices(layout, _LAYOUTS)}")
    stream = noise_stream(kind)
    images = BatchNoise(seeds, stream)
    return images if layout == "per-image" else stream(seeds[0])


_PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "float16", "bfloat16")


def _precision(dtype: DTypeLike) -> Precision:
    """Name what to draw; NumPy has no bfloat16, so that one comes as text."""
    try:
        name = "bfloat16" if dtype == "bfloat16" else np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    for precision in _PRECISIONS:
        if name == precision:
            return precision
    raise RequestError(
        f"dtype: got {name}, expected float32, float16 or 'bfloat16' (PyTorch draws float64 "
        "differently); draw float32 and convert with .astype"
    )


@overload
def randn(
    shape: Shape,
    seed: int | Sequence[int],
    dtype: type[np.float32] | Literal["bfloat16"] = ...,
) -> Array: ...
@overload
def randn(
    shape: Shape, seed: int | Sequence[int], dtype: DTypeLike
) -> NDArray[np.float32] | NDArray[np.float16]: ...
def randn(
    shape: Shape, seed: int | Sequence[int], dtype: DTypeLike = np.float32
) -> NDArray[np.float32] | NDArray[np.float16]:
    """Standard normals as ``torch.randn(shape, generator=Generator().manual_seed(seed))`` gives.

    Parameters
    ----------
    shape : tuple of int
        Shape of the result.
    seed : int or sequence of int
        See `TorchCpuNoise`. A sequence gives each image of the batch its own: image i is the
        draw of seed i alone.
    dtype : dtype, default float32
        float32, float16 or the text ``"bfloat16"``, as ``dtype=`` of ``torch.randn``.

    Returns
    -------
    ndarray of the given shape
        Of that dtype; for bfloat16, which NumPy lacks, float32 values that are rounded to
        bfloat16. Equal to PyTorch 2.13's on an x86-64 CPU, bit for bit. In float16 and bfloat16,
        PyTorch draws the ragged tail of a size that is no multiple of 16 from other words than
        in float32, so there it is not the rounded float32 draw.

    Raises
    ------
    RequestError
        For a seed, dtype or shape that cannot be drawn.
    """
    precision = _precision(dtype)

    def stream(one: int) -> NoiseSource:
        return partial(TorchCpuNoise(one).normal, precision=precision)

    if isinstance(seed, Sequence) and not isinstance(seed, str):
        drawn = BatchNoise(seed, stream)(shape)
    else:
        drawn = stream(seed)(shape)
    return drawn.astype(np.float16) if precision == "float16" else drawn
