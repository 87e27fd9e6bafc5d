"""What this machine can do at best: matrix products and moving memory, measured, not looked up.

Shared machines change by the minute, so ceilings are workloads among the others of a run, and what
is judged by them is judged round by round. Matrix ceilings are products of large square matrices,
in every library that is here; the best of an arithmetic counts. The memory ceiling is the better of
a copy and a triad over arrays far beyond the last-level cache, the cache ceiling a copy inside it.
Bytes are those that the arithmetic asks for: that a store may first read its line is not counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engine import EngineOptions
from edgediffusion.machine import machine_facts

Resource = Literal["matrix", "memory", "cache"]
Float = NDArray[np.float32]

_MIB: Final = 1 << 20
_ASSUMED_CACHE: Final = 64 * _MIB
_BLOCK: Final = 128 * 1024
"""Elements of a triad's block: three of 512 KiB stay in a core's own cache."""


@dataclass(frozen=True)
class Ceiling:
    """One workload that nothing but the machine limits.

    arithmetic : ``fp32``, ``bf16`` or ``int8`` of a matrix product; empty where memory is moved.
    work : operations (matrix) or bytes (memory, cache) of one call.
    run : the call; it returns when the work is done.
    """

    name: str
    resource: Resource
    arithmetic: str
    work: float
    run: Callable[[], object]


def ceilings(threads: int = 0, side: int = 1024) -> Iterator[Ceiling]:
    """Yield the ceilings that can be measured here, on ``threads`` threads (0: one per core)."""
    for make in (_numpy_product, _ort_products, _torch_products):
        yield from make(side, threads)
    workers = threads or os.cpu_count() or 1
    large = _large_array_bytes()
    yield _copy("copy beyond the caches", "memory", large, 1, workers)
    yield _triad(large, workers)
    inside = min(last_level_cache() // 4, 8 * _MIB)
    yield _copy("copy inside the last-level cache", "cache", inside, 8, workers)


def last_level_cache(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the last-level cache, as Linux tells; 64 MiB is assumed elsewhere."""
    texts = [path.read_text(encoding="ascii").strip() for path in root.glob("index*/size")]
    sizes = [int(text[:-1]) * 1024 for text in texts if text.endswith("K")]
    return max(sizes, default=_ASSUMED_CACHE)


def _large_array_bytes() -> int:
    """Twice the last-level cache, unless three such arrays were more than half of the memory."""
    memory = machine_facts()["memory_gib"] or 4.0
    return min(max(256 * _MIB, 2 * last_level_cache()), int(memory * 2**30 / 6))


def _numpy_product(side: int, threads: int) -> Iterator[Ceiling]:
    if threads not in (0, os.cpu_count()):  # NumPy's number of threads is settled at its start
        return
    a, b, out = (np.ones((side, side), np.float32) for _ in range(3))
    run = partial(np.matmul, a, b, out=out)
    yield Ceiling("fp32 product, NumPy", "matrix", "fp32", 2 * side**3, run)


def _ort_products(side: int, threads: int) -> Iterator[Ceiling]:
    """ONNX Runtime's own kernels: fp32, and unsigned activations times signed weights in int8."""
    ones = np.ones((side, side), np.float32)
    for arithmetic, kind, left, right in (
        ("fp32", "MatMul", ones, ones),
        ("int8", "MatMulInteger", ones.astype(np.uint8), ones.astype(np.int8)),
    ):
        session = _product_session(kind, left, right, threads)
        run = partial(session.run, None, {"a": left})
        yield Ceiling(f"{arithmetic} product, ONNX Runtime", "matrix", arithmetic, 2 * side**3, run)


def _product_session(kind: str, left: NDArray[Any], right: NDArray[Any], threads: int) -> Any:
    """A session of one product with a constant right side, as linear layers have it."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from edgediffusion.engine_ort import session_options

    result = TensorProto.FLOAT if left.dtype == np.float32 else TensorProto.INT32
    given = helper.np_dtype_to_tensor_dtype(left.dtype)
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", given, left.shape)],
        [helper.make_tensor_value_info("c", result, left.shape)],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(),
        sess_options=session_options(EngineOptions(threads=threads)),
        providers=["CPUExecutionProvider"],
    )


def _torch_products(side: int, threads: int) -> Iterator[Ceiling]:
    if find_spec("torch") is None:
        return
    import torch

    if threads:
        torch.set_num_threads(threads)
    for arithmetic, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b, out = (torch.ones(side, side, dtype=dtype) for _ in range(3))
        run = partial(torch.mm, a, b, out=out)
        yield Ceiling(f"{arithmetic} product, PyTorch", "matrix", arithmetic, 2 * side**3, run)


def _copy(name: str, resource: Resource, size: int, repeat: int, workers: int) -> Ceiling:
    """Copy ``size`` bytes ``repeat`` times: each byte is read and written."""
    source, target = (np.ones(size // 4, np.float32) for _ in range(2))

    def work(part: slice) -> None:
        for _ in range(repeat):
            np.copyto(target[part], source[part])

    return Ceiling(
        name, resource, "", 2 * source.nbytes * repeat, _shared(work, len(source), workers)
    )


def _triad(size: int, workers: int) -> Ceiling:
    """a = b + 3 c, McCalpin's STREAM: two reads and a write, in blocks that stay in the core."""
    a, b, c = (np.ones(size // 4, np.float32) for _ in range(3))

    def work(part: slice) -> None:
        for start in range(part.start, part.stop, _BLOCK):
            block = slice(start, min(start + _BLOCK, part.stop))
            np.multiply(c[block], np.float32(3), out=a[block])
            np.add(a[block], b[block], out=a[block])

    run = _shared(work, len(a), workers)
    return Ceiling("triad beyond the caches", "memory", "", 3 * a.nbytes, run)


def _shared(work: Callable[[slice], None], length: int, workers: int) -> Callable[[], object]:
    """Split work on an array among threads; NumPy lets them run at once."""
    bounds = [length * i // workers for i in range(workers + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    pool = ThreadPoolExecutor(workers)
    return lambda: list(pool.map(work, parts))
