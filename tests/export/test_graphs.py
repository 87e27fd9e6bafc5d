from __future__ import annotations

from dataclasses import replace

import pytest

from edgediffusion.manifest import GraphSpec, Precision
from edgediffusion_export.graphs import NETWORKS, graph_specs
from tests.export.test_architecture import architecture

SIZES = [(512, 512), (512, 768)]


def specs(name: str, precision: Precision = "fp32") -> list[GraphSpec]:
    """The graphs of a component; of the UNet, those that every export makes."""
    network = next(network for network in NETWORKS if network.name == name)
    if name == "unet":
        network = replace(network, other=())
    return list(graph_specs(network, architecture(), SIZES, [1, 2], precision))


def signature(spec: GraphSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: (t.dtype, t.shape) for t in (*spec.inputs, *spec.outputs)}


def test_a_unet_has_a_graph_for_each_size_and_batch() -> None:
    assert [(spec.file, spec.size, spec.batch) for spec in specs("unet")] == [
        ("unet/512x512.b1.onnx", (512, 512), 1),
        ("unet/512x512.b2.onnx", (512, 512), 2),
        ("unet/512x768.b1.onnx", (512, 768), 1),
        ("unet/512x768.b2.onnx", (512, 768), 2),
    ]
    assert signature(specs("unet")[3]) == {
        "sample": ("float32", (1, 4, 64, 96)),
        "timestep": ("float32", (1,)),
        "encoder_hidden_states": ("float32", (2, 77, 768)),
        "out_sample": ("float32", (2, 4, 64, 96)),
    }


def test_a_text_encoder_knows_no_sizes() -> None:
    spec, _ = specs("text_encoder")
    assert (spec.file, spec.size) == ("text_encoder/b1.onnx", None)
    assert signature(spec) == {
        "input_ids": ("int64", (1, 77)),
        "last_hidden_state": ("float32", (1, 77, 768)),
        "pooler_output": ("float32", (1, 768)),
    }


def test_a_text_encoder_has_a_graph_for_more_than_plain_prompts() -> None:
    plain, prompt = specs("text_encoder", "fp16")
    assert (plain.variant, prompt.variant) == ("plain", "prompt")
    assert (prompt.file, prompt.size) == ("text_encoder/b1.prompt.onnx", None)
    assert signature(prompt) == {
        "input_ids": ("int64", (1, 77)),
        "extra_embeddings": ("float16", (75, 768)),
        "skip_states": ("float16", (1, 13, 77, 768)),
        "pooler_output": ("float16", (1, 768)),
    }


def test_longer_prompts_get_graphs_of_their_own_behind_the_plain_ones() -> None:
    network = next(network for network in NETWORKS if network.name == "unet")
    network = replace(network, other=())
    found = list(graph_specs(network, architecture(), SIZES[:1], [1, 2], "fp32", chunks=3))
    assert [(spec.file, spec.variant) for spec in found] == [
        ("unet/512x512.b1.onnx", "plain"),
        ("unet/512x512.b2.onnx", "plain"),
        ("unet/512x512.b1.chunks-2.onnx", "chunks-2"),
        ("unet/512x512.b2.chunks-2.onnx", "chunks-2"),
        ("unet/512x512.b1.chunks-3.onnx", "chunks-3"),
        ("unet/512x512.b2.chunks-3.onnx", "chunks-3"),
    ]
    lengths = [signature(spec)["encoder_hidden_states"][1][1] for spec in found]
    assert lengths == [77, 77, 154, 154, 231, 231]


@pytest.mark.parametrize("name", ["text_encoder", "vae_decoder"])
def test_only_the_unet_has_graphs_for_longer_prompts(name: str) -> None:
    network = next(network for network in NETWORKS if network.name == name)
    one, three = (
        list(graph_specs(network, architecture(), SIZES, [1, 2], "fp32", chunks=n)) for n in (1, 3)
    )
    assert one == three


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("vae_decoder", {"latent_sample": (1, 4, 64, 96)}, {"sample": (1, 3, 512, 768)}),
        ("vae_encoder", {"sample": (1, 3, 512, 768)}, {"latent_parameters": (1, 8, 64, 96)}),
        ("vae_tiny_decoder", {"latent_sample": (1, 4, 64, 96)}, {"sample": (1, 3, 512, 768)}),
    ],
)
def test_autoencoders_have_a_graph_for_each_size(
    name: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
) -> None:
    first, second = specs(name)
    assert (first.file, second.file) == (f"{name}/512x512.b1.onnx", f"{name}/512x768.b1.onnx")
    assert {t.name: t.shape for t in second.inputs} == inputs
    assert {t.name: t.shape for t in second.outputs} == outputs


def test_half_graphs_take_whole_timesteps() -> None:
    dtypes = {name: dtype for name, (dtype, _) in signature(specs("unet", "fp16")[0]).items()}
    assert dtypes.pop("timestep") == "float32"
    assert set(dtypes.values()) == {"float16"}


def test_deepcache_gives_the_unet_a_deep_and_a_shallow_graph() -> None:
    network = next(network for network in NETWORKS if network.name == "unet")
    found = list(graph_specs(network, architecture(), SIZES[:1], [2], "fp16", chunks=2))
    assert [(spec.file, spec.variant) for spec in found] == [
        ("unet/512x512.b2.onnx", "plain"),
        ("unet/512x512.b2.chunks-2.onnx", "chunks-2"),
        ("unet/512x512.b2.deep.onnx", "deep"),
        ("unet/512x512.b2.deep.chunks-2.onnx", "deep.chunks-2"),
        ("unet/512x512.b2.shallow.onnx", "shallow"),
        ("unet/512x512.b2.shallow.chunks-2.onnx", "shallow.chunks-2"),
    ]
    plain, deep, shallow = (signature(spec) for spec in found[::2])
    features = {"deep_features": ("float16", (2, 320, 64, 64))}
    assert deep == shallow == plain | features
    assert [t.name for t in found[2].outputs] == ["out_sample", "deep_features"]
    assert [t.name for t in found[4].inputs][-1] == "deep_features"
    assert all(network.of(spec.variant).name in ("unet", "deep", "shallow") for spec in found)
