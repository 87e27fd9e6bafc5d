"""What the int8 tests read from a graph on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx


def operators(bundle: Path, graph: str) -> Counter[str]:
    """How often each operator occurs in a graph."""
    model = onnx.load(bundle / graph, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)
