"""3x3 convolutions as products on transformed tiles: Winograd's minimal filtering.

Lavin and Gray 2015, arXiv:1509.09308. With a tile d of the input, the taps g and the matrices of
``Filtering``, a tile of the output is

    A^T [(G g G^T) * (B^T d B)] A

where * is by element, summed over the input channels. F(4x4, 3x3) makes 4x4 numbers of the output
out of 6x6 of the input with 36 multiplications a pair of channels; the sum over the taps takes 144.

As operators, with the tiles of all pictures side by side: a convolution with fixed taps transforms
the tiles, one matrix product for each of the 36 positions sums over the channels, a small product
transforms back, and DepthToSpace puts the tiles in place.

In front of such a convolution, a nearest upsample by 2 repeats its input, so a row of six is
a b b c c d. B^T of that has a row of zeros: 25 of the 36 products remain, and the transform reads
the small map.

Exact in real numbers. In float32 the error of one convolution is 2e-6 of its output's norm where it
was 2e-7 (measured), far within the gate of 1e-4. In bf16 it is 5e-3 with tiles of 2x2 and 1.4e-2
with those of 4x4, where the convolution itself has 3e-3: within the gate of a network, 3e-2, for a
UNet and, with tiles of 2x2 alone, for a decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgediffusion_export.rewrites.patch import Patch, attribute, is_weight, static_shape

Matrix = NDArray[np.float64]

LEAST_CHANNELS: Final = 256
"""Below, transforming takes about as long as the saved products: 0.7 to 1.9 of the plain time."""

STRIP_BYTES: Final = 64 * 2**20
"""Larger maps are cut into strips of rows: the transformed tiles of one stay near the cores, and
take no more memory than what surrounds them."""

FLOAT_BYTES: Final = 4

_PLAIN: Final[dict[str, tuple[int, ...] | int]] = {
    "strides": (1, 1),
    "dilations": (1, 1),
    "pads": (1, 1, 1, 1),
    "group": 1,
}


@dataclass(frozen=True)
class TileAreas:
    """From which area of a map on a convolution gets tiles of 2x2, and from which on of 4x4.

    Tiles of 4x4 take four times the memory of the taps, tiles of 2x2 take 16/9. The time that a
    byte saves grows with the map. With the areas below the transformed weights of Stable Diffusion
    1.5 come to 1.3 times the weights; tiles of 4x4 already on maps of 32x32 would save another 4 %
    of a step and take another 0.5 GB (measured, 2 cores with AVX-512, ONNX Runtime 1.32).
    """

    small: int
    large: int


AT_EVERY_STEP: Final = TileAreas(small=16 * 16, large=64 * 64)
AT_EVERY_STEP_IN_HALVES: Final = TileAreas(small=8 * 8, large=32 * 32)
ONCE_A_PICTURE_IN_HALVES: Final = TileAreas(small=64 * 64, large=1 << 30)
"""Decoders add up what tiles of 4x4 lose: 5e-2 where the gate is 3e-2. Tiles of 2x2 do not."""
ONCE_A_PICTURE: Final = TileAreas(small=64 * 64, large=128 * 128)


@dataclass(frozen=True, eq=False)
class Filtering:
    """F(tile x tile, 3 x 3) as matrices for one dimension: B^T, G and A^T.

    ``scale`` is how much larger the convolution's input is than what ``inputs`` transforms.
    """

    name: str
    tile: int
    inputs: Matrix
    taps: Matrix
    outputs: Matrix
    scale: int = 1

    @property
    def products(self) -> int:
        """Multiplications for a tile and a pair of channels."""
        return len(self.inputs) ** 2

    def upsampled(self) -> Filtering:
        """The same behind a nearest upsample by 2: repeated inputs add up, zeros are left out."""
        reach = self.inputs.shape[1]
        repeat = np.zeros((reach, reach // 2 + 1))
        repeat[np.arange(reach), (np.arange(reach) + 1) // 2] = 1
        inputs = self.inputs @ repeat
        used = inputs.any(axis=1)
        parts = inputs[used], self.taps[used], self.outputs[:, used]
        return Filtering(f"{self.name}up", self.tile, *parts, scale=2)


def toom_cook(name: str, tile: int, *points: Fraction) -> Filtering:
    """F(tile x tile, 3 x 3) by its finite points; infinity is the last one.

    The transpose of multiplying polynomials by their values at the points (Lavin and Gray 2015,
    section 4; Barabasz et al. 2018, arXiv:1803.10986).
    """
    one = Fraction(1)
    others = [[each for each in points if each != point] for point in points]
    scales = [
        1 / prod((p - each for each in rest), start=one)
        for p, rest in zip(points, others, strict=True)
    ]
    inputs = [_coefficients(rest, tile + 2) for rest in (*others, points)]
    taps = [
        [s * Fraction(point**j) for j in range(3)] for point, s in zip(points, scales, strict=True)
    ]
    infinity = [0 * one, 0 * one, one]
    powers = [[float(point) ** i for point in points] for i in range(tile)]
    outputs = [[*row, float(i == tile - 1)] for i, row in enumerate(powers)]
    return Filtering(name, tile, _matrix(inputs), _matrix([*taps, infinity]), np.array(outputs))


def _coefficients(roots: Sequence[Fraction], count: int) -> list[Fraction]:
    """Those of the polynomial with these roots, the constant one first."""
    found, zero = [Fraction(1)], Fraction(0)
    for root in roots:
        found = [a - root * b for a, b in zip([zero, *found], [*found, zero], strict=True)]
    return found + [zero] * (count - len(found))


def _matrix(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return np.array([[float(each) for each in row] for row in rows])


SMALL: Final = toom_cook("f2", 2, *map(Fraction, (0, 1, -1)))
LARGE: Final = toom_cook("f4", 4, *map(Fraction, (0, 1, -1, 2, -2)))
BALANCED: Final = toom_cook("f4b", 4, *(Fraction(each, 8) for each in (0, 5, -5, 12, -12)))
"""Where bf16 rounds what is transformed, these points lose half of what the others do (measured by
trying all pairs of sixteenths). Behind an upsample they save nothing more, as 1 and -1 do."""


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution with its sizes: the input has ``height`` x ``width`` numbers a channel.

    ``source`` is what it reads, behind a nearest upsample where ``upsampled``.
    """

    node: ir.Node
    source: ir.Value
    batch: int
    ins: int
    outs: int
    height: int
    width: int
    upsampled: bool


def filter_minimally(
    model: ir.Model, areas: TileAreas = AT_EVERY_STEP, halves: bool = False
) -> int:
    """Replace the convolutions that gain by it.

    halves : for a CPU that multiplies in bf16; the products are typed so, because OpenVINO would
        compute a product with a constant in float32.
    """
    count = 0
    for node in list(model.graph):
        convolution = _match(node)
        if convolution is None or min(convolution.ins, convolution.outs) < LEAST_CHANNELS:
            continue
        filtering = _choose(convolution, areas, BALANCED if halves else LARGE)
        if filtering is not None:
            _replace(model.graph, convolution, filtering, halves)
            count += 1
    return count


def _match(node: ir.Node) -> Convolution | None:
    """Read a node as a 3x3 convolution that keeps the size of its input."""
    if node.op_type != "Conv":
        return None
    shape, taps = static_shape(node.inputs[0]), static_shape(node.inputs[1])
    plain = all(attribute(node, name, value) == value for name, value in _PLAIN.items())
    if shape is None or taps is None or not plain or not all(map(is_weight, node.inputs[1:])):
        return None
    if taps[2:] != (3, 3) or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    source = node.inputs[0]
    assert source is not None  # it has a shape
    small = _before_upsample(source)
    sizes = shape[0], taps[1], taps[0], shape[2], shape[3]
    return Convolution(node, small or source, *sizes, upsampled=small is not None)


def _before_upsample(value: ir.Value) -> ir.Value | None:
    """What a nearest upsample by 2 repeats, if ``value`` is one's output."""
    node = value.producer()
    if node is None or node.op_type != "Resize" or attribute(node, "mode", "nearest") != "nearest":
        return None
    small, large = static_shape(node.inputs[0]), static_shape(value)
    if small is None or large != (*small[:2], 2 * small[2], 2 * small[3]):
        return None
    repeats = (attribute(node, "coordinate_transformation_mode", "half_pixel"),
               attribute(node, "nearest_mode", "round_prefer_floor"))  # fmt: skip
    return node.inputs[0] if repeats == ("asymmetric", "floor") else None


def _choose(
    convolution: Convolution, areas: TileAreas, large: Filtering = LARGE
) -> Filtering | None:
    """The tile that suits the map; all batches of a graph choose alike."""
    area = convolution.height * convolution.width
    for filtering, least in ((large, areas.large), (SMALL, areas.small)):
        fits = convolution.height % filtering.tile == convolution.width % filtering.tile == 0
        if convolution.upsampled and filtering is BALANCED:
            continue  # tiles of 2x2 take as few products there, and lose less
        if area >= least and fits:
            return filtering.upsampled() if convolution.upsampled else filtering
    return None


def _replace(graph: ir.Graph, convolution: Convolution, filtering: Filtering, halves: bool) -> None:
    patch, c = Patch(graph, convolution.node), convolution
    weight = c.node.inputs[1]
    assert weight is not None  # matched
    spread = patch.constant(f"{filtering.name}.taps", _for_two(filtering.taps))
    taps = patch.add("Einsum", weight, spread, equation="oixy,pxy->poi")  # folded at load
    if halves:
        taps = patch.cast(taps, ir.DataType.BFLOAT16)
    count = _strips(c, filtering)
    strips = [_filter_strip(patch, c, filtering, taps, i, count) for i in range(count)]
    maps = strips[0] if count == 1 else patch.add("Concat", *strips, axis=2)
    patch.finish(_add_bias(patch, c, maps))


def _strips(c: Convolution, f: Filtering) -> int:
    """Into how many strips of rows to cut the map: the least that keeps each within the limit."""
    rows = c.height // f.tile
    size = f.products * max(c.ins, c.outs) * c.batch * (c.width // f.tile) * FLOAT_BYTES
    return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n * size <= STRIP_BYTES)


def _filter_strip(
    patch: Patch, c: Convolution, f: Filtering, taps: ir.Value, index: int, strips: int
) -> ir.Value:
    """One strip of the output, of shape (batch, channels out, rows, width)."""
    down, across = c.height // f.tile // strips, c.width // f.tile
    tiles = c.batch * down * across
    columns = _transform_input(patch, c, f, index, strips)
    summed = _product(patch, taps, patch.reshape(columns, f.products, c.ins, tiles))
    back = patch.constant(f"{f.name}.outputs", np.kron(f.outputs, f.outputs).astype(np.float32))
    rows = patch.add("MatMul", back, patch.reshape(summed, f.products, c.outs * tiles))
    apart = patch.reshape(rows, f.tile**2, c.outs, c.batch, down * across)
    sides = c.batch, f.tile**2 * c.outs, down, across
    maps = patch.reshape(patch.transpose(apart, 2, 0, 1, 3), *sides)
    return patch.add("DepthToSpace", maps, blocksize=f.tile)


def _product(patch: Patch, taps: ir.Value, columns: ir.Value) -> ir.Value:
    """The sum over the channels, in the numbers that the taps have."""
    if taps.dtype != ir.DataType.BFLOAT16:
        return patch.add("MatMul", taps, columns)
    summed = patch.add("MatMul", taps, patch.cast(columns, ir.DataType.BFLOAT16))
    summed.type = taps.type
    return patch.cast(summed, ir.DataType.FLOAT)


def _transform_input(
    patch: Patch, c: Convolution, f: Filtering, index: int, strips: int
) -> ir.Value:
    """B^T d B of a strip's tiles, of shape (products, channels in, batch, tiles of a picture)."""
    height, width = c.height // f.scale, c.width // f.scale
    part, first, last = height // strips, index == 0, index == strips - 1
    source, rows = c.source, height
    if strips > 1:  # with a row of each neighbour, where there is one
        start, stop = index * part - (not first), (index + 1) * part + (not last)
        source, rows = patch.rows(source, start, stop), stop - start
    tiles = patch.add(
        "Conv",
        patch.reshape(source, c.batch * c.ins, 1, rows, width),
        patch.constant(f"{f.name}.inputs", _for_two(f.inputs)[:, None]),
        strides=[f.tile // f.scale] * 2,
        pads=[int(first), 1, int(last), 1],
    )
    count = c.height * c.width // f.tile**2 // strips
    return patch.transpose(patch.reshape(tiles, c.batch, c.ins, f.products, count), 2, 1, 0, 3)


def _for_two(matrix: Matrix) -> NDArray[np.float32]:
    """For a matrix of one dimension the kernels of two, of shape (products, columns, columns)."""
    kernels: Matrix = np.einsum("ai,bj->abij", matrix, matrix)
    return kernels.reshape(-1, *kernels.shape[2:]).astype(np.float32)


def _add_bias(patch: Patch, c: Convolution, value: ir.Value) -> ir.Value:
    bias = c.node.inputs[2] if len(c.node.inputs) > 2 else None
    return value if bias is None else patch.add("Add", value, patch.reshape(bias, c.outs, 1, 1))
