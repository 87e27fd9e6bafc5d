"""A small valid manifest as plain data, for tests that bend it."""

from __future__ import annotations

import copy
from typing import Any

_SHA = "0" * 64


def tensor(name: str, *shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def graph(file: str, inputs: list[Any], outputs: list[Any], **more: Any) -> dict[str, Any]:
    case = {
        "inputs": {each["name"]: {"type": "noise", "seed": 0} for each in inputs},
        "outputs": {each["name"]: {"type": "stored", "tensor": each["name"]} for each in outputs},
    }
    parity = {"l2": 1e-7, "max_abs": 1e-6, "gate": 1e-4, "cases": 1}
    return {
        "file": file,
        "batch": 1,
        "precision": "fp32",
        "inputs": inputs,
        "outputs": outputs,
        "parity": parity,
        "golden": [case],
    } | more


def component(name: str, *graphs: dict[str, Any]) -> dict[str, Any]:
    return {
        "graphs": list(graphs),
        "weights": f"{name}/weights.safetensors",
        "golden": f"{name}/golden.safetensors",
        "parameters": 1,
        "tensors": {"a": {"source": "a.weight", "transforms": ["transpose"]}},
    }


def _components() -> dict[str, Any]:
    sized = {"size": [64, 64]}
    unet_inputs = [
        tensor("sample", 1, 4, 8, 8),
        tensor("timestep", 1),
        tensor("encoder_hidden_states", 1, 77, 16),
    ]
    text = graph(
        "text_encoder/b1.onnx",
        [tensor("input_ids", 1, 77, dtype="int64")],
        [tensor("last_hidden_state", 1, 77, 16), tensor("pooler_output", 1, 16)],
    )
    unet = graph("unet/64x64.b1.onnx", unet_inputs, [tensor("out_sample", 1, 4, 8, 8)], **sized)
    decoder = graph(
        "vae_decoder/64x64.b1.onnx",
        [tensor("latent_sample", 1, 4, 8, 8)],
        [tensor("sample", 1, 3, 64, 64)],
        **sized,
    )
    graphs = {"text_encoder": text, "unet": unet, "vae_decoder": decoder}
    return {name: component(name, each) for name, each in graphs.items()}


def valid_manifest() -> dict[str, Any]:
    """A manifest without faults."""
    components = _components()
    files = {"tokenizer/tokenizer.json": {"size": 1, "sha256": _SHA}}
    for each in components.values():
        paths = [each["weights"], each["golden"], *(g["file"] for g in each["graphs"])]
        files |= {path: {"size": 1, "sha256": _SHA} for path in paths}
    return copy.deepcopy(
        {
            "format": 1,
            "name": "toy",
            "family": "stable-diffusion",
            "created": "2026-11-23T00:00:00Z",
            "tools": {"torch": "2.13.0"},
            "source": {"checkpoint": "toy", "revision": None, "sha256": {}},
            "license": "Apache-2.0",
            "precision": "fp32",
            "store": "fp16",
            "components": components,
            "tokenizer": {
                "file": "tokenizer/tokenizer.json",
                "length": 77,
                "bos": 1,
                "eos": 2,
                "pad": 2,
            },
            "scheduler": {"_class_name": "DDIMScheduler"},
            "latent": {
                "channels": 4,
                "downsampling": 8,
                "scaling_factor": 0.18215,
                "shift_factor": 0.0,
                "rgb": [[0.1, 0.2, 0.3]] * 4,
                "rgb_bias": [0.5, 0.5, 0.5],
            },
            "conditioning": {"recipe": "clip", "hidden_state": "last_hidden_state", "width": 16},
            "gates": {"fp32": 1e-4},
            "defaults": {"steps": 20, "guidance": 7.5, "sampler": None},
            "files": files,
        }
    )
