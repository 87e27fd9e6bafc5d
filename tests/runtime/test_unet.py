"""The UNet's function over engines that count, so that every row can be told from the others."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.engine import Engine
from edgediffusion.manifest import GraphSpec, Parity, TensorSpec
from edgediffusion.unet import Unet

IMAGE = np.arange(8, dtype=np.float32).reshape(2, 2, 2)


class Echo:
    """Predicts sample + text, and keeps count of its runs."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: Any) -> list[Any]:
        self.batches.append(len(inputs["sample"]))
        assert {array.dtype.name for array in inputs.values()} == {"float16", "float32"}
        assert inputs["timestep"].tolist() == [7.5]
        prediction = inputs["sample"] + inputs["text"][:, :, None, None]
        return [prediction, inputs["text"] * 2]

    def rest(self) -> None: ...

    def close(self) -> None: ...


def engine(batch: int, backend: Echo) -> Engine:
    sample, text = (batch, 2, 2, 2), (batch, 1)
    spec = GraphSpec(
        file=f"unet/b{batch}.onnx",
        batch=batch,
        precision="fp16",
        inputs=(
            TensorSpec("text", "float16", text),
            TensorSpec("sample", "float16", sample),
            TensorSpec("timestep", "float32", (1,)),
        ),
        outputs=(
            TensorSpec("out_sample", "float16", sample),
            TensorSpec("deep_features", "float16", text),
        ),
        parity=Parity(0.0, 0.0, 1.0, 1),
        golden=(),
    )
    return Engine(spec, "cpu", backend)


@pytest.mark.parametrize(
    ("have", "rows", "ran"), [((1, 2), 2, [2]), ((1,), 2, [1, 1]), ((1, 2), 1, [1]), ((1,), 1, [1])]
)
def test_rows_go_through_the_graphs_that_are_there(
    have: tuple[int, ...], rows: int, ran: list[int]
) -> None:
    backend = Echo()
    unet = Unet({batch: engine(batch, backend) for batch in have})
    outputs = unet(IMAGE, 7.5, text=np.arange(rows, dtype=np.float32)[:, None])
    assert backend.batches == ran
    for row in range(rows):
        np.testing.assert_array_equal(outputs["out_sample"][row], IMAGE + row)
        assert outputs["deep_features"][row] == 2 * row
    assert unet.spent_ms > 0


def test_a_graph_may_take_one_picture_for_all_rows() -> None:
    backend = Echo()
    graph = engine(2, backend)
    sample = TensorSpec("sample", "float16", (1, 2, 2, 2))
    others = (tensor for tensor in graph.spec.inputs if tensor.name != "sample")
    graph.spec = msgspec.structs.replace(graph.spec, inputs=(*others, sample))
    outputs = Unet({2: graph})(IMAGE, 7.5, text=np.arange(2, dtype=np.float32)[:, None])
    assert backend.batches == [1]
    np.testing.assert_array_equal(outputs["out_sample"], [IMAGE, IMAGE + 1])


def test_a_prediction_that_is_no_number_names_the_component_and_the_timestep() -> None:
    unet = Unet({1: engine(1, Echo())})
    with pytest.raises(ed.NumericalError, match=r"unet computed NaN or infinity at timestep 7\.5"):
        unet(IMAGE * np.float32("nan"), 7.5, text=np.zeros((1, 1), np.float32))
