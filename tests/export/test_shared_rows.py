from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers import UNet2DConditionModel

from edgediffusion.golden import relative_l2
from edgediffusion_export.graphs import denoise, for_all_texts
from edgediffusion_export.shared_rows import remove_idle, share_rows

BLOCKS = {
    "text first": ("CrossAttnDownBlock2D", "DownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "text later": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "no text": ("DownBlock2D", "DownBlock2D", "UpBlock2D", "UpBlock2D"),
}


def unet(blocks: str) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=BLOCKS[blocks][:2],
        up_block_types=BLOCKS[blocks][2:],
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        mid_block_type=None if blocks == "no text" else "UNetMidBlock2DCrossAttn",
    ).eval()


class Rows(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> Any:
        return for_all_texts(denoise)(self.model, *inputs)


def inputs(rows: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(s, generator=draws) for s in ((1, 4, 8, 8), (rows, 5, 8)))
    return sample, torch.tensor([300.0]), text


def trace(model: Any, rows: int) -> ir.Model:
    program = torch.onnx.export(
        Rows(model),
        inputs(rows),
        input_names=["sample", "timestep", "text"],
        output_names=["out"],
        dynamo=True,
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    return program.model


def run(model: ir.Model, rows: int) -> Any:
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    arrays = (tensor.numpy() for tensor in inputs(rows))
    return session.run(None, dict(zip(["sample", "timestep", "text"], arrays, strict=True)))[0]


def shapes(model: ir.Model, kind: str) -> list[int]:
    """The rows of what operators of a kind give."""
    return [int(node.outputs[0].shape[0]) for node in model.graph if node.op_type == kind]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize(("blocks", "convolutions"), [("text first", 3), ("text later", 8)])
@torch.no_grad()
def test_what_all_rows_share_is_computed_once(blocks: str, convolutions: int, rows: int) -> None:
    model = unet(blocks)
    many, one = trace(model, rows), trace(model, 1)
    before = run(many, rows)
    count = len(shapes(many, "Conv"))
    assert share_rows(many, one) > 50
    onnx.checker.check_model(ir.serde.serialize_model(many), full_check=True)
    once = shapes(many, "Conv").count(1)
    assert once >= convolutions
    assert shapes(many, "Conv").count(rows) == count - once > 0
    assert shapes(many, "Gemm") == [1] * len(shapes(many, "Gemm"))  # all of the timestep's
    after = run(many, rows)
    assert relative_l2(after, before) < 1e-6
    assert relative_l2(after, model(*inputs(rows)[:0], **as_words(rows)).sample.numpy()) < 1e-5


def as_words(rows: int) -> dict[str, torch.Tensor]:
    sample, timestep, text = inputs(rows)
    return {
        "sample": sample.expand(rows, -1, -1, -1),
        "timestep": timestep,
        "encoder_hidden_states": text,
    }


@pytest.mark.filterwarnings("ignore")
def test_attention_stays_recognisable() -> None:
    """The queries of the first layer that reads the text are repeated before they become heads."""
    many, one = (trace(unet("text first"), rows) for rows in (2, 1))
    share_rows(many, one)
    for node in many.graph:
        if node.op_type == "Expand" and node.outputs[0].shape.rank() == 3:
            (maker, users) = node.inputs[0].producer(), node.outputs[0].consumers()
            assert maker is not None
            assert maker.op_type in ("MatMul", "Add")
            assert {user.op_type for user in users} <= {"Reshape", "Add"}


Change = Callable[[ir.Model], None]


def another_operator(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Sin").op_type = "Cos"


def rows_elsewhere(model: ir.Model) -> None:
    """The rows of what leaves the shared part are the second side."""
    for node in model.graph:
        if node.op_type == "Conv":
            node.outputs[0].shape = ir.Shape([8, 1, 8, 8])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [another_operator, rows_elsewhere])
def test_a_twin_that_is_none_leaves_the_graph_as_it_is(change: Change) -> None:
    many, one = (trace(unet("text first"), rows) for rows in (2, 1))
    before = ir.serde.serialize_model(many).SerializeToString(deterministic=True)
    change(one)
    assert share_rows(many, one) == 0
    assert ir.serde.serialize_model(many).SerializeToString(deterministic=True) == before


def test_a_repetition_to_the_same_shape_goes() -> None:
    shape = ir.tensor(np.array([1, 4], np.int64), name="shape")
    value = ir.Value(name="shape", const_value=shape, shape=shape.shape)
    x = ir.val("x", shape=[1, 4], dtype=ir.DataType.FLOAT)
    idle = ir.node("Expand", [x, value])
    idle.outputs[0].shape = ir.Shape([1, 4])
    last = ir.node("Relu", [idle.outputs[0]])
    graph = ir.Graph([x], last.outputs, nodes=[idle, last], initializers=[value])
    remove_idle(graph)
    assert [node.op_type for node in graph] == ["Relu"]
    assert last.inputs[0] is x


def test_a_bundle_takes_one_picture_for_all_rows(tiny_bundle: Path) -> None:
    from edgediffusion.bundle import Bundle

    spec = Bundle.open(tiny_bundle).graph("unet", batch=2, size=(64, 64))
    found = {tensor.name: tensor.shape[0] for tensor in (*spec.inputs, *spec.outputs)}
    assert found == {"sample": 1, "timestep": 1, "encoder_hidden_states": 2, "out_sample": 2}
