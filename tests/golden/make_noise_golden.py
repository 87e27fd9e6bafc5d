"""Write noise.safetensors: what torch and torchsde draw, for machines where neither is installed.

    python -m tests.golden.make_noise_golden        (from the repository root)

It needs torch on an x86-64 CPU with AVX2, diffusers and torchsde
(``pip install --no-deps torchsde trampoline``), and writes about 55 kB.
"""

from __future__ import annotations

import hashlib
import json
import platform
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.certificate import write_golden

FILE = Path(__file__).with_name("noise.safetensors")

# Each sequence is one generator; its draws follow one another. They mix the scalar path (under 16
# values, with its cached second value), whole blocks of 16, and ragged tails.
SEQUENCES: dict[int, list[tuple[int, ...]]] = {
    0: [(5,), (3,), (1,), (20,), (1,), (1, 4, 8, 8), (2, 3), (31,), (1,)],
    42: [(6,), (64,), (17,), (7,), (15,), (16,)],
    2**32 - 1: [(1,), (33,), (2,), (4, 5, 7)],
    2**33 + 5: [(1, 4, 16, 16), (9,), (9,)],
    2**64 - 1: [(3, 3), (47,)],
    -1: [(3, 3), (47,)],
}
# Long draws, too many to keep: the sha256 of their bytes, little-endian float32.
LONG = [(0, 16384), (1, 16385), (7, 1_000_003)]
PRECISIONS = ("float32", "float16", "bfloat16")
# Noise between the levels of a Karras schedule: shape, seed or a seed per image, steps.
BROWNIAN: list[tuple[tuple[int, ...], int | list[int], int]] = [
    ((1, 4, 4, 4), 0, 20),
    ((2, 4, 3, 3), 7, 5),
    ((2, 4, 4, 4), [1, 2**40 + 3], 5),
    ((1, 2, 3, 3), [2**64 - 1], 50),
    ((2, 3), 11, 5),
]


def draw(seed: int, shape: int | tuple[int, ...], precision: str, generator: Any = None) -> Any:
    """Draw with torch; half precisions come back as the float32 values they stand for."""
    import torch

    generator = generator or torch.Generator().manual_seed(seed)
    dtype = getattr(torch, precision)
    return torch.randn(shape, generator=generator, dtype=dtype).float().numpy()


def level_pairs(steps: int) -> list[tuple[Any, Any]]:
    """Levels between which diffusers' DPMSolverSDEScheduler asks for noise, as float32 tensors."""
    import torch

    ramp = np.linspace(14.6146 ** (1 / 7), 0.0292 ** (1 / 7), steps)
    pairs = []
    for sigma, sigma_next in pairwise(torch.from_numpy(ramp**7).float()):
        time, end = sigma.log().neg(), sigma_next.log().neg()
        middle = time + (end - time) * 0.5
        first, half, last = (each.neg().exp() for each in (time, middle, end))
        pairs += [(first, half), (first, last)]
    return pairs


def brownian(shape: tuple[int, ...], seed: int | list[int], steps: int) -> tuple[Any, Any]:
    """Draw with torchsde, as diffusers does: the pairs of levels, and the noise of each."""
    import torch
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    pairs = level_pairs(steps)
    levels = np.array([[a.item(), b.item()] for a, b in pairs], dtype=np.float32)
    sampler = BrownianTreeNoiseSampler(
        torch.zeros(shape), float(levels.min()), float(levels.max()), seed
    )
    return levels, np.stack([sampler(a, b).numpy() for a, b in pairs])


def main() -> None:
    """Draw with torch and torchsde and write the file."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() != "x86_64" or capability not in ("AVX2", "AVX512"):
        raise SystemExit(f"this machine draws with {capability}, not AVX2: other bits")
    tensors, hashes = {}, {}
    for precision in PRECISIONS:
        for seed, shapes in SEQUENCES.items():
            generator = torch.Generator().manual_seed(seed)
            for i, shape in enumerate(shapes):
                drawn = draw(seed, shape, precision, generator)
                tensors[f"{precision}/{seed}/{i}"] = drawn
        for seed, count in LONG:
            drawn = draw(seed, count, precision)
            hashes[f"{precision}/{seed}/{count}"] = hashlib.sha256(drawn.tobytes()).hexdigest()
    for i, (shape, entropy, steps) in enumerate(BROWNIAN):
        levels, noise = brownian(shape, entropy, steps)
        tensors |= {f"brownian/{i}/levels": levels, f"brownian/{i}/noise": noise}
    write_golden(
        FILE,
        tensors,
        Path(__file__).name,
        ("torch", "diffusers", "torchsde", "numpy"),
        capability=capability,
        sequences=json.dumps({str(seed): shapes for seed, shapes in SEQUENCES.items()}),
        sha256=json.dumps(hashes),
        brownian=json.dumps(BROWNIAN),
    )


if __name__ == "__main__":
    main()
