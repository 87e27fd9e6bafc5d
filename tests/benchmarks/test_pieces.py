from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.pieces import cut
from benchmarks.rewrites import Options, compare
from edgediffusion.bundle import Bundle
from edgediffusion_export.rewrites import winograd


def test_the_pieces_hold_every_node_once(demo: Path) -> None:
    model = onnx.load(demo / "unet/128x128.b1.onnx", load_external_data=False)
    pieces = cut(model)
    made = [name for piece in pieces for node in piece.model.graph.node for name in node.output]
    assert sorted(made) == sorted(name for node in model.graph.node for name in node.output)
    for before, piece in enumerate(pieces):
        known = {"sample", "timestep", "encoder_hidden_states"}
        known |= {tensor.name for each in pieces[:before] for tensor in each.outputs}
        assert {tensor.name for tensor in piece.inputs} <= known
    assert [tensor.name for tensor in pieces[-1].outputs] == ["out_sample"]


@pytest.mark.parametrize("pieces", [False, True])
def test_a_graph_is_compared_whole_or_in_pieces(
    demo: Path, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 128)  # the demo gains nothing by it
    bundle = Bundle.open(demo)
    spec = bundle.graph("unet", size=(128, 128))
    found = compare(bundle, spec, Options(rounds=1, each=False, pieces=pieces))
    assert found["all"]["rewrites"] == {"winograd": 1}
    assert 0 < found["all"]["l2_to_plain"] < 1e-5
