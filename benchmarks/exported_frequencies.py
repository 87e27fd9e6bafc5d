"""What OpenVINO's export in 16 bits changes: the frequencies of the UNet's timestep embedding.

    HOME/environments/openvino-genai/bin/python benchmarks/exported_frequencies.py \\
        HOME/models/shapes-128x128/openvino-ir PICTURES

PICTURES is the folder that ``peers.py shapes --pictures PICTURES`` left: the inputs of one
UNet call, and what the reference predicted. Prints the relative L2 of OpenVINO's prediction in
float32 from it, with the graph as it was exported and with the exact frequencies put back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
from openvino import opset13

LONGEST_PERIOD: Final = 10_000
NEAR: Final = 1e-3  # what 16 bits can change


def frequencies(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield constants that are an embedding's frequencies, each with its exact value."""
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f16:
            continue
        stored = node.get_data()
        count = stored.size
        exact = LONGEST_PERIOD ** (-np.arange(count) / count)
        if count > 1 and np.abs(stored.ravel() - exact).max() < NEAR:
            yield node, exact.reshape(stored.shape).astype(np.float32)


def put_back(model: Any) -> int:
    """Replace rounded frequencies, behind their conversion to float32; return how many."""
    found = list(frequencies(model))
    for node, exact in found:
        (conversion,) = (port.get_node() for port in node.output(0).get_target_inputs())
        for port in conversion.output(0).get_target_inputs():
            port.replace_source_output(opset13.constant(exact).output(0))
    return len(found)


def distance(model: Any, inputs: Any, reference: Any) -> float:
    """The relative L2 of the model's prediction in float32."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    given = {
        "sample": inputs["sample"],
        "timestep": inputs["timestep"].reshape(1).astype(np.int64),
        "encoder_hidden_states": inputs["states"],
    }
    (prediction,) = compiled(given).values()
    return float(np.linalg.norm(prediction - reference) / np.linalg.norm(reference))


def main(exported: str, pictures: str) -> None:
    """Print both distances."""
    model = openvino.Core().read_model(Path(exported) / "unet" / "openvino_model.xml")
    reference = np.load(Path(pictures) / "diffusers-fp32.unet.npy")
    with np.load(Path(pictures) / "unet_inputs.npz") as inputs:
        print(f"as exported: {distance(model, inputs, reference):.1e}")
        count = put_back(model)
        print(f"{count} frequencies put back: {distance(model, inputs, reference):.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
