from __future__ import annotations

import getpass
from pathlib import Path

import onnx
import pytest

from edgediffusion.manifest_file import read_manifest


def graph_files(bundle: Path) -> list[Path]:
    return sorted(bundle.glob("*/*.onnx"))


def test_graphs_are_plain_opset_20(tiny_bundle: Path) -> None:
    for path in graph_files(tiny_bundle):
        model = onnx.load(path, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        onnx.checker.check_model(path, full_check=True)


def test_graphs_are_static(tiny_bundle: Path) -> None:
    for component in read_manifest(tiny_bundle).components.values():
        for spec in component.graphs:
            graph = onnx.load(tiny_bundle / spec.file, load_external_data=False).graph
            for value in (*graph.input, *graph.output):
                shape = value.type.tensor_type.shape.dim
                assert all(dim.HasField("dim_value") for dim in shape)


def test_nothing_of_the_machine_leaks(tiny_bundle: Path) -> None:
    machine = [b"/work", b"/home", b"site-packages", b".py", str(Path.home()).encode() + b"/"]
    for path in sorted(p for p in tiny_bundle.rglob("*") if p.is_file()):
        data = path.read_bytes()
        found = [word for word in machine if path.suffix in (".onnx", ".json") and word in data]
        assert not found, f"{path.name} holds {found}"
    for path in graph_files(tiny_bundle):
        model = onnx.load(path, load_external_data=False)
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_weights_lie_beside_the_graphs(tiny_bundle: Path) -> None:
    for path in graph_files(tiny_bundle):
        initializers = onnx.load(path, load_external_data=False).graph.initializer
        external = [t for t in initializers if t.external_data]
        assert external
        for tensor in external:
            (location,) = (e.value for e in tensor.external_data if e.key == "location")
            assert location == "weights.safetensors"
        inline = [t for t in initializers if not t.external_data]
        assert max(len(t.raw_data) for t in inline) < 1024


@pytest.mark.skipif(getpass.getuser() == "root", reason="'root' is an ordinary word")
def test_the_users_name_does_not_leak(tiny_bundle: Path) -> None:
    for path in graph_files(tiny_bundle):
        assert getpass.getuser().encode() not in path.read_bytes()
