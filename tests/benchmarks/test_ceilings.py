import importlib.util
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceilings as module
from benchmarks.ceilings import ceilings, last_level_cache

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_large_array_bytes", lambda: 2 * MIB)


def test_every_ceiling_runs_and_says_what_it_is() -> None:
    found = list(ceilings(side=64))
    for each in found:
        each.run()
    kinds = {(each.resource, each.arithmetic) for each in found}
    products = {("matrix", name) for name in ("fp32", "bf16", "int8")}
    assert kinds == products | {("memory", ""), ("cache", "")}
    assert len({each.name for each in found}) == len(found)
    assert {each.work for each in found if each.resource == "matrix"} == {2 * 64**3}


def test_without_pytorch_there_is_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else real(name))
    assert {each.arithmetic for each in ceilings(side=64)} == {"fp32", "int8", ""}


def test_numpy_is_left_out_where_its_threads_cannot_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    names = [each.name for each in ceilings(threads=1, side=64)]
    assert "fp32 product, NumPy" not in names
    assert "fp32 product, ONNX Runtime" in names


def test_a_product_is_right_on_every_library() -> None:
    ones = np.ones((64, 64), np.float32)
    for arithmetic, left, right in (
        ("MatMul", ones, ones),
        ("MatMulInteger", ones.astype(np.uint8), -ones.astype(np.int8)),
    ):
        session = module._product_session(arithmetic, left, right, threads=1)
        (result,) = session.run(None, {"a": left})
        np.testing.assert_array_equal(result, left.astype(np.int32) @ right.astype(np.int32))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_copies_and_triads_touch_every_byte(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []
    real = np.ones

    def counted(*arguments: object) -> np.ndarray:
        made.append(real(*arguments))  # type: ignore[call-overload]
        return made[-1]

    monkeypatch.setattr(np, "ones", counted)
    copy = module._copy("copy", "memory", 4 * 1_000_003, 2, workers)
    source, target = made
    source[:] = np.arange(len(source))
    copy.run()
    np.testing.assert_array_equal(target, source)
    assert copy.work == 2 * 2 * source.nbytes
    made.clear()
    triad = module._triad(4 * 1_000_003, workers)
    a, b, c = made
    b[:], c[:] = 2, np.arange(len(c)) % 1000
    triad.run()
    np.testing.assert_array_equal(a, 2 + 3 * c)
    assert triad.work == 3 * a.nbytes


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "32K", "2048K", "30720K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n", encoding="ascii")
    assert last_level_cache(tmp_path) == 30 * MIB


def test_an_unknown_cache_is_assumed(tmp_path: Path) -> None:
    assert last_level_cache(tmp_path) == 64 * MIB


def test_large_arrays_leave_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "last_level_cache", lambda: 260 * MIB)
    for memory, expected in ((24.0, 520 * MIB), (1.5, 256 * MIB), (0.6, int(0.1 * 2**30))):
        monkeypatch.setattr(module, "machine_facts", lambda memory=memory: {"memory_gib": memory})
        assert module._large_array_bytes() == pytest.approx(expected, rel=1e-6)
