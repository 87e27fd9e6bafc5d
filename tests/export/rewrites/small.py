"""Small graphs to rewrite, and both forms of them run side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, checker, helper, numpy_helper, shape_inference

from edgediffusion.golden import relative_l2

Arrays = Mapping[str, NDArray[np.generic]]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def check(model: ir.Model) -> None:
    """Checked as a file, with all shapes inferred and compared with those that are said."""
    proto = ir.serde.serialize_model(model)
    checker.check_model(proto, full_check=True)
    shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def let_out(model: ir.Model, name: str) -> None:
    """Make a value of the graph one of its outputs."""
    (found,) = (out for node in model.graph for out in node.outputs if out.name == name)
    model.graph.outputs.append(found)


@dataclass(frozen=True)
class Small:
    """A graph of ``nodes`` from ``inputs`` to ``y``, both float32, with constants."""

    nodes: Sequence[NodeProto]
    inputs: Mapping[str, tuple[int, ...]]
    output: tuple[int, ...]
    constants: Arrays

    def model(self) -> ir.Model:
        """The graph with the shapes of all values, which the tracer knows too."""

        def say(name: str, shape: tuple[int, ...]) -> object:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            self.nodes,
            "small",
            [say(name, shape) for name, shape in self.inputs.items()],
            [say("y", self.output)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opset = helper.make_opsetid("", 20)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        return ir.serde.deserialize_model(
            shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)
        )

    def with_computed(self, weight: str) -> Small:
        """The same, with a constant that the graph computes itself."""
        double = helper.make_node("Add", ["half", "half"], [weight])
        constants = {n: a for n, a in self.constants.items() if n != weight}
        constants["half"] = self.constants[weight]
        return replace(self, nodes=[double, *self.nodes], constants=constants)

    def run(self, model: ir.Model) -> NDArray[np.float32]:
        """Compute ``y`` for inputs drawn from fixed seeds."""
        data = ir.serde.serialize_model(model).SerializeToString()
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        values = {name: draw(*shape, seed=7) for name, shape in self.inputs.items()}
        (y,) = session.run(None, values)
        return np.asarray(y, np.float32)

    def distance(self, changed: ir.Model) -> float:
        """How far a changed model is from this graph, as a relative L2."""
        return relative_l2(self.run(changed), self.run(self.model()))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)
