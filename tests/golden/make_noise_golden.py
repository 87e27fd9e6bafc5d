"""Write noise.safetensors: what torch.randn gives on an x86-64 CPU with AVX2.

    python -m tests.golden.make_noise_golden          (from the repository root)

The file's metadata is its birth certificate and says which draws it holds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

from safetensors.numpy import save_file

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


def main() -> None:
    """Draw with torch and write the file."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() != "x86_64" or capability not in ("AVX2", "AVX512"):
        raise SystemExit(f"this machine draws with {capability}, not AVX2: other bits")
    tensors = {}
    for seed, shapes in SEQUENCES.items():
        generator = torch.Generator().manual_seed(seed)
        for i, shape in enumerate(shapes):
            tensors[f"{seed}/{i}"] = torch.randn(shape, generator=generator).numpy()
    hashes = {}
    for seed, count in LONG:
        values = torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()
        hashes[f"{seed}/{count}"] = hashlib.sha256(values.tobytes()).hexdigest()
    certificate = {
        "script": "tests/golden/make_noise_golden.py",
        "torch": torch.__version__,
        "capability": capability,
        "date": datetime.now(UTC).date().isoformat(),
        "sequences": json.dumps({str(seed): shapes for seed, shapes in SEQUENCES.items()}),
        "sha256": json.dumps(hashes),
    }
    save_file(tensors, FILE, metadata=certificate)
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
