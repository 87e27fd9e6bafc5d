"""Counts against hand calculation, and against PyTorch's own counter on whole networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import count, count_model
from edgediffusion.errors import EngineError
from edgediffusion_export.quiet import quiet_onnx
from tests.checkpoints import TEXT_WIDTH, write_tiny_checkpoint

SHAPES = Path(__file__).resolve().parents[2] / "models" / "shapes" / "checkpoint"

Shape = Sequence[int]


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, Shape] | None = None,
) -> onnx.ModelProto:
    """A float32 graph; ONNX works the other shapes out."""
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(made, opset_imports=opsets))


node = helper.make_node


# --- operations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "shape", "kernel", "flops"),
    [
        ({"pads": [1, 1, 1, 1]}, (1, 4, 8, 8), (6, 4, 3, 3), 2 * 6 * 8 * 8 * 4 * 9),
        ({"strides": [2, 2]}, (2, 4, 8, 8), (6, 4, 2, 2), 2 * 2 * 6 * 4 * 4 * 4 * 4),
        ({"group": 2, "pads": [1, 1, 1, 1]}, (1, 4, 8, 8), (6, 2, 3, 3), 2 * 6 * 8 * 8 * 2 * 9),
        ({"dilations": [2, 2]}, (1, 4, 8, 8), (6, 4, 3, 3), 2 * 6 * 4 * 4 * 4 * 9),
    ],
)
def test_a_convolution_is_counted_as_pytorch_counts_it(
    attributes: dict[str, Any], shape: Shape, kernel: Shape, flops: int
) -> None:
    model = graph([node("Conv", ["x", "w"], ["y"], **attributes)], {"x": shape}, ["y"],
                  {"w": kernel})  # fmt: skip
    assert count_model(model).flops == {"conv": flops, "matmul": 0, "attention": 0, "other": 0}
    names = {"strides": "stride", "group": "groups", "dilations": "dilation"}
    options = {names[key]: value for key, value in attributes.items() if key in names}
    options["padding"] = attributes.get("pads", [0])[0]
    assert torch_flops(torch.conv2d, torch.ones(shape), torch.ones(kernel), **options) == flops


def test_a_transposed_convolution_is_counted_as_pytorch_counts_it() -> None:
    model = graph([node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], {"x": (1, 4, 8, 8)},
                  ["y"], {"w": (4, 6, 3, 3)})  # fmt: skip
    expected = torch_flops(
        torch.nn.functional.conv_transpose2d,
        torch.ones(1, 4, 8, 8),
        torch.ones(4, 6, 3, 3),
        None,
        2,
    )
    assert count_model(model).flops["conv"] == expected == 2 * 8 * 8 * 4 * 6 * 9


def test_products_with_weights_count_without_their_bias() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], ["y"]), node("Gemm", ["y", "v", "b"], ["z"], transB=1)],
        {"x": (5, 8)}, ["z"], {"w": (8, 3), "v": (7, 3), "b": (7,)},
    )  # fmt: skip
    assert count_model(model).flops["matmul"] == 2 * 5 * 8 * 3 + 2 * 5 * 3 * 7


def test_a_transposed_left_side_is_summed_over_its_first_axis() -> None:
    model = graph([node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": (8, 5)}, ["y"], {"w": (8, 3)})
    assert count_model(model).flops["matmul"] == 2 * 5 * 8 * 3


def test_a_product_of_activations_is_attention() -> None:
    model = graph([node("MatMul", ["x", "k"], ["y"])], {"x": (2, 5, 8), "k": (2, 8, 3)}, ["y"])
    assert count_model(model).flops["attention"] == 2 * 2 * 5 * 8 * 3


@pytest.mark.parametrize(
    ("domain", "operator", "attributes"),
    [("", "Attention", {"q_num_heads": 2, "kv_num_heads": 2}),
     ("com.microsoft", "MultiHeadAttention", {"num_heads": 2})],
)  # fmt: skip
def test_a_fused_attention_counts_as_its_two_products(
    domain: str, operator: str, attributes: dict[str, int]
) -> None:
    inputs = {"q": (2, 5, 8), "k": (2, 7, 8), "v": (2, 7, 8)}
    model = graph([node(operator, list(inputs), ["y"], domain=domain, **attributes)], inputs, ["y"])
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 5, 8)))
    assert count_model(model).flops["attention"] == 2 * (2 * 2 * 5 * 7 * 8)


def test_the_rest_counts_by_its_elements() -> None:
    model = graph(
        [node("Softmax", ["x"], ["s"]), node("Add", ["s", "x"], ["a"]),
         node("ReduceMean", ["a"], ["m"], keepdims=0)],
        {"x": (4, 6)}, ["m"],
    )  # fmt: skip
    assert count_model(model).flops["other"] == 5 * 24 + 24 + 24


def test_what_depends_on_weights_alone_is_folded() -> None:
    model = graph(
        [node("Cast", ["h"], ["w"], to=TensorProto.FLOAT), node("Transpose", ["w"], ["t"]),
         node("MatMul", ["x", "t"], ["y"])],
        {"x": (5, 8)}, ["y"],
    )  # fmt: skip
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 8), np.float16), "h"))
    cost = count_model(onnx.shape_inference.infer_shapes(model))
    assert [each.operator for each in cost.nodes] == ["MatMul"]
    assert cost.weight_bytes == 3 * 8 * 4  # the arithmetic reads what Cast made of it


# --- bytes ----------------------------------------------------------------------------------------


def test_elementwise_operations_stay_with_their_product() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], ["y"]), node("Add", ["y", "b"], ["a"]),
         node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["z"])],
        {"x": (5, 8)}, ["z"], {"w": (8, 3), "b": (3,)},
    )  # fmt: skip
    cost = count_model(model)
    assert cost.weight_bytes == 4 * (8 * 3 + 3)
    assert cost.activation_bytes == 4 * (5 * 8 + 5 * 3)
    assert cost.unfused_bytes == 4 * (5 * 8 + 15 + 15 + 15 + 15 + 15 + 30 + 15)


def test_a_result_of_two_readers_is_written_once_and_read_twice() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["y", "v"], ["a"]),
         node("MatMul", ["y", "u"], ["b"])],
        {"x": (5, 8)}, ["a", "b"], {"w": (8, 3), "v": (3, 2), "u": (3, 4)},
    )  # fmt: skip
    assert count_model(model).activation_bytes == 4 * (5 * 8 + 15 + 15 + 15 + 10 + 20)


def test_a_residual_is_read_by_the_last_of_its_producers() -> None:
    model = graph(
        [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["y", "v"], ["z"]),
         node("Add", ["z", "y"], ["r"])],
        {"x": (5, 8)}, ["r"], {"w": (8, 3), "v": (3, 3)},
    )  # fmt: skip
    # y is written once and read once: by the second product, which adds it, too
    assert count_model(model).activation_bytes == 4 * (5 * 8 + 15 + 15 + 15)


def test_the_scores_of_an_attention_never_move() -> None:
    model = graph(
        [node("MatMul", ["q", "k"], ["s"]), node("Softmax", ["s"], ["p"]),
         node("Transpose", ["v"], ["t"], perm=[0, 2, 1]), node("MatMul", ["p", "t"], ["y"])],
        {"q": (2, 50, 8), "k": (2, 8, 60), "v": (2, 8, 60)}, ["y"],
    )  # fmt: skip
    q, k, v, y = 2 * 50 * 8, 2 * 8 * 60, 2 * 8 * 60, 2 * 50 * 8
    assert count_model(model).activation_bytes == 4 * (q + k + (v + v) + v + y)


def test_views_move_nothing_and_selections_what_they_select() -> None:
    model = graph(
        [node("Gather", ["table", "i"], ["g"]), node("Unsqueeze", ["g", "axis"], ["u"]),
         node("Tanh", ["u"], ["y"])],
        {}, ["y"], {"table": (1000, 8)},
    )  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, (2,)))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    cost = count_model(onnx.shape_inference.infer_shapes(model))
    assert cost.weight_bytes == 0
    gathered = 2 * 8 * 4
    assert cost.unfused_bytes == 2 * gathered + 2 * gathered
    assert cost.activation_bytes == gathered + gathered  # the indices' turn is the result's size


# --- whole networks -------------------------------------------------------------------------------


def torch_flops(call: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """What PyTorch counts. Its fused attention on the CPU would count as nothing."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*arguments, **options)
    return int(counter.get_total_flops())


def network_flops(checkpoint: Path, component: str, batch: int, size: int) -> int:
    """What PyTorch counts for a component of a checkpoint, for pictures of ``size`` pixels."""
    latents = torch.zeros(batch, 4, size // 8, size // 8)
    if component == "text_encoder":
        text = transformers.CLIPTextModel.from_pretrained(
            checkpoint / component, attn_implementation="eager"
        )
        return torch_flops(text, torch.ones(1, 77, dtype=torch.int64))
    if component == "unet":
        unet = UNet2DConditionModel.from_pretrained(checkpoint / component)
        states = torch.zeros(batch, 77, unet.config.cross_attention_dim)
        return torch_flops(unet, latents, torch.tensor([1]), states)
    if component == "vae_tiny_decoder":
        return torch_flops(AutoencoderTiny.from_pretrained(checkpoint / "vae_tiny").decode, latents)
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    if component == "vae_encoder":
        return torch_flops(vae.encode, torch.zeros(1, 3, size, size))
    return torch_flops(vae.decode, latents)


GRAPHS = [
    ("text_encoder", 1), ("unet", 1), ("unet", 2), ("vae_decoder", 1), ("vae_encoder", 1),
    ("vae_tiny_decoder", 1),
]  # fmt: skip


@pytest.mark.parametrize(("component", "batch"), GRAPHS)
def test_the_demo_counts_as_pytorch_counts_it(demo: Path, component: str, batch: int) -> None:
    name = "b1" if component == "text_encoder" else f"128x128.b{batch}"
    found = count(demo / component / f"{name}.onnx").matrix_flops
    counted = network_flops(SHAPES, component, batch, 128)
    if batch == 1:
        assert found == pytest.approx(counted, rel=0.02)
    else:  # its rows share the work in front of the text, which PyTorch does for each
        assert 0.9 * counted < found < 0.98 * counted


class Plain(torch.nn.Module):
    """A tiny UNet or decoder with tensors alone in and out."""

    def __init__(self, checkpoint: Path, component: str) -> None:
        super().__init__()
        unet, vae = UNet2DConditionModel, AutoencoderKL
        self.model = (unet if component == "unet" else vae).from_pretrained(checkpoint / component)
        self.call = self.model if component == "unet" else self.model.decode

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.call(*inputs, return_dict=False)[0]


@pytest.mark.parametrize(
    ("component", "inputs"),
    [
        ("unet", (torch.zeros(2, 4, 8, 8), torch.tensor([1]), torch.zeros(2, 77, TEXT_WIDTH))),
        ("vae", (torch.zeros(1, 4, 8, 8),)),
    ],
)
def test_a_tiny_checkpoint_counts_as_pytorch_counts_it(
    tmp_path: Path, component: str, inputs: tuple[torch.Tensor, ...]
) -> None:
    module = Plain(write_tiny_checkpoint(tmp_path / "tiny"), component).eval()
    with quiet_onnx(), torch.no_grad():
        program = torch.onnx.export(module, inputs, dynamo=True, opset_version=20, verbose=False)
    assert program is not None
    found = count_model(program.model_proto).matrix_flops
    assert found == pytest.approx(torch_flops(module, *inputs), rel=0.02)


def test_an_expected_count_of_a_whole_demo_graph(demo: Path) -> None:
    # A counter that counted nothing in both would agree with itself.
    cost = count(demo / "unet" / "128x128.b2.onnx")
    assert cost.flops["conv"] > cost.flops["matmul"] > cost.flops["attention"] > 0
    assert cost.weight_bytes < cost.activation_bytes < cost.unfused_bytes
    doubled = count(demo / "unet" / "128x128.b1.onnx")
    assert 1.8 * doubled.matrix_flops < cost.matrix_flops < 1.9 * doubled.matrix_flops
    assert cost.weight_bytes == pytest.approx(doubled.weight_bytes, rel=0.01)


# --- bad input ------------------------------------------------------------------------------------


def test_an_unknown_operator_is_named() -> None:
    model = graph([node("Det", ["x"], ["y"], name="odd")], {"x": (3, 3)}, ["y"])
    with pytest.raises(EngineError, match=r"cannot count operator 'Det' \(node 'odd'\): add it"):
        count_model(model)


def test_a_dynamic_shape_is_refused() -> None:
    model = graph([node("Tanh", ["x"], ["y"])], {"x": (1,)}, ["y"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(EngineError, match=r"tensor '\w' has no static shape: export the"):
        count_model(model)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"odd.onnx is not a readable ONNX file"):
        count(tmp_path / "odd.onnx")
