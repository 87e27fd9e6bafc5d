"""Sums of int8 products on a CPU without VNNI, which QEMU emulates: right, whatever the weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgediffusion_export.quantize.integers import REDUCED_LEVELS, WEIGHT_LEVELS

QEMU = shutil.which("qemu-x86_64")
RUN = """
import sys
import numpy as np, onnxruntime as ort
from edgediffusion import cpu
from edgediffusion.engine import EngineOptions
from edgediffusion.engine_ort import session_options
import edgediffusion.engine_ort as engine
engine.computes_int8 = lambda: sys.argv[2] == "plain"  # /proc/cpuinfo is that of the real CPU
options = session_options(EngineOptions(threads=1))
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(out,) = session.run(None, {"x": np.ones((1, 4, 64), np.float32)})
print(float(out[0, 0, 0]))
"""


def write_product(path: Path, levels: int) -> None:
    """A linear layer of the largest activations and weights there are: the sum of 64 ones."""
    constants = {
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "weight": np.full((64, 16), levels, np.int8),
        "scales": np.full(16, 1 / levels, np.float32),
        "zeros": np.zeros(16, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["floats"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["floats", "matrix"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (apt-get install qemu-user)")
@pytest.mark.parametrize(
    ("levels", "options", "right"),
    [
        (WEIGHT_LEVELS, "plain", False),
        (WEIGHT_LEVELS, "exact", True),
        (REDUCED_LEVELS, "plain", True),
    ],
    ids=["full range overflows", "unless the kernels are exact", "reduced range does not"],
)
def test_sums_on_haswell(tmp_path: Path, levels: int, options: str, right: bool) -> None:
    write_product(tmp_path / "product.onnx", levels)
    done = subprocess.run(
        [str(QEMU), "-cpu", "Haswell", sys.executable, "-c", RUN, "product.onnx", options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (float(done.stdout) == pytest.approx(64, rel=1e-3)) == right, done.stdout
