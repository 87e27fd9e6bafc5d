from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from edgediffusion.manifest import Precision, StoredTensor
from edgediffusion_export.weights import PAGE, WeightStore, is_matrix

Arrays = dict[str, NDArray[np.float32]]
DRAW = np.random.default_rng(0)
A = DRAW.normal(size=(8, 16)).astype(np.float32)
BIAS = DRAW.normal(size=16).astype(np.float32)
CONSTANT = DRAW.normal(size=(16, 32)).astype(np.float32)


def chain(initializers: Arrays) -> ir.Model:
    """``x @ first @ second ...``, or plus where the shapes ask for it."""
    nodes, at = [], "x"
    for i, (name, array) in enumerate(initializers.items()):
        kind = "MatMul" if array.ndim == 2 and min(array.shape) > 1 else "Add"
        nodes.append(helper.make_node(kind, [at, name], [f"y{i}"]))
        at = f"y{i}"
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.serde.deserialize_model(model)


def write(store: WeightStore, model: ir.Model, links: dict[str, str], folder: Path) -> Path:
    (folder / "w.safetensors").write_bytes(b"".join(bytes(chunk) for chunk in store.chunks()))
    store.link(model, links, "w.safetensors")
    path = folder / "g.onnx"
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
    return path


def run(path: Path) -> NDArray[np.float32]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((1, 8), np.float32)})
    return np.asarray(y, np.float32)


def store_of(
    parameters: Arrays, *, source: Precision = "fp32", store: Precision = "fp32"
) -> WeightStore:
    return WeightStore(parameters, source=source, store=store)


def test_a_graph_finds_its_tensors_in_the_file(tmp_path: Path) -> None:
    store, model = store_of({"a": A, "bias": BIAS}), chain({"m.a": A, "m.b": BIAS, "c": CONSTANT})
    links = store.adopt(model, {"m.a": "a", "m.b": "bias"})
    assert links == {"a": "a", "bias": "bias", "c": "constant.2"}
    path = write(store, model, links, tmp_path)
    onnx.checker.check_model(path, full_check=True)
    np.testing.assert_allclose(run(path)[0], (A.sum(0) + BIAS) @ CONSTANT, rtol=1e-4)
    stored = load_file(tmp_path / "w.safetensors")
    assert set(stored) == {"a", "bias", "constant.2"}
    assert np.array_equal(stored["a"], A)
    assert store.tensors()["constant.2"] == StoredTensor(None)


def test_transposed_and_reshaped_parameters_are_traced(tmp_path: Path) -> None:
    store = store_of({"linear.weight": A.T.copy(), "norm.weight": BIAS})
    model = chain({"val_1": A, "val_2": BIAS.reshape(1, 16)})
    links = store.adopt(model, {})
    assert links == {"linear.weight": "linear.weight", "norm.weight": "norm.weight"}
    assert store.tensors() == {
        "linear.weight": StoredTensor("linear.weight", ("transpose",)),
        "norm.weight": StoredTensor("norm.weight", ("reshape:1x16",)),
    }
    np.testing.assert_allclose(run(write(store, model, links, tmp_path))[0], A.sum(0) + BIAS, 1e-5)


def test_a_parameter_may_be_needed_both_ways(tmp_path: Path) -> None:
    square = DRAW.normal(size=(8, 8)).astype(np.float32)
    store, model = store_of({"w": square}), chain({"w": square, "val_7": square.T.copy()})
    links = store.adopt(model, {})
    assert links == {"w": "w", "val_7": "w.transpose"}
    y = run(write(store, model, links, tmp_path))
    np.testing.assert_allclose(y[0], (square @ square.T).sum(0), rtol=1e-4, atol=1e-4)


def test_equal_tensors_are_stored_once_for_all_graphs() -> None:
    store = store_of({"a": A, "twin": A.copy(), "bias": BIAS})
    first, second = chain({"a": A, "bias": BIAS}), chain({"twin": A, "bias": BIAS})
    assert store.adopt(first, {}) == {"a": "a", "bias": "bias"}
    assert store.adopt(second, {}) == {"twin": "a", "bias": "bias"}
    assert set(store.entries) == {"a", "bias"}


def test_a_folded_constant_gets_the_name_of_a_free_twin() -> None:
    ones = np.ones(16, np.float32)
    store = store_of({"p": ones, "q": ones})
    model = chain({"m.a": A, "m.p": ones, "val_3": ones.reshape(1, 16), "val_4": ones})
    links = store.adopt(model, {"m.p": "p"})
    assert links == {"p": "p", "q": "p", "val_4": "p"}


def test_small_constants_stay_in_the_graph() -> None:
    store, model = store_of({}), chain({"small": A})
    assert store.adopt(model, {}) == {}
    assert not store.entries
    assert model.graph.initializers["small"].const_value is not None


def test_the_file_has_no_holes_and_aligned_tensors() -> None:
    store = store_of({"a": A, "bias": BIAS, "odd": A[:3, :3].copy()}, store="fp16")
    store.adopt(chain({"a": A, "bias": BIAS, "odd": A[:3, :3].copy()}), {})
    header, offsets = store.layout()
    assert len(header) % PAGE == 0
    at = len(header)
    for name, offset in offsets.items():
        entry = store.entries[name]
        assert offset == at
        assert offset % entry.dtype.itemsize == 0
        at += entry.nbytes
    assert at == sum(memoryview(chunk).nbytes for chunk in store.chunks())


def test_halved_matrices_are_cast_back(tmp_path: Path) -> None:
    rounded = A.astype(np.float16).astype(np.float32)
    store = store_of({"a": rounded, "bias": BIAS}, store="fp16")
    model = chain({"m.a": rounded, "m.b": BIAS})
    links = store.adopt(model, {"m.a": "a", "m.b": "bias"})
    path = write(store, model, links, tmp_path)
    stored = load_file(tmp_path / "w.safetensors")
    assert (stored["a"].dtype, stored["bias"].dtype) == (np.float16, np.float32)
    nodes = {node.name: node for node in onnx.load(path, load_external_data=False).graph.node}
    assert list(nodes["a.cast"].input) == ["a"]
    assert list(nodes["a.cast"].output) == ["a.float32"]
    onnx.checker.check_model(path, full_check=True)
    np.testing.assert_allclose(run(path)[0], rounded.sum(0) + BIAS, rtol=1e-5)
    assert store.tensors()["a"].transforms == ("cast:float16",)


def test_a_half_parameter_that_a_layer_takes_in_float32_is_stored_once(tmp_path: Path) -> None:
    half, bias = A.astype(np.float16), BIAS.astype(np.float16)
    store = WeightStore({"a": half, "bias": bias}, source="fp16", store="fp16")
    wide = {"m.a": half.astype(np.float32), "m.b": bias.astype(np.float32), "c": CONSTANT}
    model = chain(wide)
    links = store.adopt(model, {"m.a": "a", "m.b": "bias"})
    assert links == {"a": "a", "bias": "bias", "c": "constant.2"}
    narrow = chain({})
    narrow.graph.register_initializer(
        ir.Value(name="m.a", shape=ir.Shape(half.shape), const_value=ir.tensor(half, name="m.a"))
    )
    assert store.adopt(narrow, {"m.a": "a"}) == {"a": "a"}
    path = write(store, model, links, tmp_path)
    stored = load_file(tmp_path / "w.safetensors")
    assert {name: array.dtype.name for name, array in stored.items()} == {
        "a": "float16",
        "bias": "float16",
        "constant.2": "float32",
    }
    onnx.checker.check_model(path, full_check=True)
    np.testing.assert_allclose(run(path)[0], (half.sum(0, np.float32) + bias) @ CONSTANT, rtol=1e-3)
    assert store.tensors()["a"].transforms == ()


@pytest.mark.parametrize(
    ("source", "store", "transforms"),
    [
        ("fp32", "fp32", ((), ())),
        ("fp16", "fp32", (("cast:float32",), ("cast:float32",))),
        ("fp16", "fp16", ((), ("cast:float32",))),
        ("fp32", "fp16", (("cast:float16",), ())),
    ],
)
def test_casts_are_recorded(
    source: Precision, store: Precision, transforms: tuple[tuple[str, ...], ...]
) -> None:
    found = store_of({"a": A, "bias": BIAS}, source=source, store=store)
    found.adopt(chain({"a": A, "bias": BIAS}), {})
    assert tuple(found.tensors()[name].transforms for name in ("a", "bias")) == transforms


@pytest.mark.parametrize(
    ("shape", "matrix"), [((), False), ((4,), False), ((1, 4, 1), False), ((2, 2), True)]
)
def test_matrices_have_two_sides(shape: tuple[int, ...], matrix: bool) -> None:
    assert is_matrix(shape) is matrix
