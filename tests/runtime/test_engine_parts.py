from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from edgediffusion.engine_parts import PartsBackend, part_graphs
from edgediffusion.errors import EngineError
from edgediffusion.manifest import GraphSpec, Parity, PartSpec, TensorSpec


def tensors(names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", (1,)) for name in names.split())


def part(file: str, inputs: str, outputs: str) -> PartSpec:
    return PartSpec(file, tensors(inputs), tensors(outputs))


SPEC = GraphSpec(
    file="unet/a.onnx",
    batch=1,
    precision="fp32",
    inputs=tensors("x t"),
    outputs=tensors("y z"),
    parity=Parity(0, 0, 0, 0),
    golden=(),
    parts=(
        part("unet/a.part-1.onnx", "x", "p skip"),
        part("unet/a.part-2.onnx", "p t", "q y"),
        part("unet/a.part-3.onnx", "q skip", "z"),
    ),
)


class Summing:
    """Gives the sum of all inputs, plus the place of the output; notes what happens to it."""

    arithmetic = "fp32"
    log: list[str]

    def __init__(self, spec: GraphSpec, log: list[str]) -> None:
        self.spec, self.log = spec, log
        log.append(f"open {spec.file[-6]}")

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        self.log.append("run " + " ".join(inputs))
        if "fail" in inputs:
            raise EngineError("it failed")
        return [sum(inputs.values()) + i for i in range(len(self.spec.outputs))]

    def rest(self) -> None: ...

    def close(self) -> None:
        self.log.append("close")


def test_one_part_at_a_time_is_loaded_and_gets_what_it_takes() -> None:
    log: list[str] = []
    backend = PartsBackend(SPEC, lambda spec: Summing(spec, log))
    assert log == ["open 1", "close"]
    log.clear()
    y, z = backend.run({"x": np.ones(1), "t": np.full(1, 10.0)})
    runs = ("run x", "run p t", "run q skip")
    assert log == [line for n, run in enumerate(runs, 1) for line in (f"open {n}", run, "close")]
    # p = 1, skip = 2; q = p + t, y = q + 1; z = q + skip
    assert (float(y[0]), float(z[0])) == (12.0, 13.0)


def test_a_part_that_fails_is_closed_and_the_next_run_is_a_new_one() -> None:
    log: list[str] = []
    broken = msgspec.structs.replace(
        SPEC,
        parts=(part("unet/a.part-1.onnx", "x", "fail"), part("unet/a.part-2.onnx", "fail", "y z")),
    )
    backend = PartsBackend(broken, lambda spec: Summing(spec, log))
    for _ in range(2):
        with pytest.raises(EngineError, match="it failed"):
            backend.run({"x": np.ones(1), "t": np.ones(1)})
        assert log.count("close") == sum(line.startswith("open") for line in log)


def test_parts_are_graphs_of_their_own_without_golden_vectors() -> None:
    first = part_graphs(SPEC)[0]
    assert (first.file, first.parts, first.golden) == ("unet/a.part-1.onnx", (), ())
    assert [tensor.name for tensor in first.outputs] == ["p", "skip"]
    assert first.precision == SPEC.precision
