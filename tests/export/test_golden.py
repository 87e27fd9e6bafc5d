from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.golden import golden_inputs
from edgediffusion.manifest import GraphSpec, Noise, Stored
from edgediffusion_export.golden import Golden, noise_cases, prompt_cases, unet_cases
from edgediffusion_export.graphs import NETWORKS, graph_specs
from tests.export.test_architecture import architecture

TWO_MB = 2_000_000


def graph(name: str, batch: int = 1, side: int = 512) -> GraphSpec:
    network = next(network for network in NETWORKS if network.name == name)
    return next(graph_specs(network, architecture(), [(side, side)], [batch], "fp32"))


@pytest.mark.parametrize(("batch", "side"), [(1, 512), (2, 512), (4, 512), (8, 512), (2, 1024)])
def test_a_unet_has_at_most_two_megabytes(batch: int, side: int) -> None:
    golden, spec = Golden(), graph("unet", batch, side)
    states = np.random.default_rng(0).normal(size=(3, 77, 768)).astype(np.float32)
    cases = unet_cases(golden, spec, {"encoder_hidden_states": states}, architecture())
    for i, case in enumerate(cases):
        inputs = golden_inputs(case, spec, golden.tensors)
        assert {name: array.shape for name, array in inputs.items()} == {
            tensor.name: tensor.shape for tensor in spec.inputs
        }
        golden.keep_output(f"out.{i}", np.zeros(spec.outputs[0].shape, np.float32))
    assert sum(tensor.nbytes for tensor in golden.tensors.values()) <= TWO_MB
    assert [float(golden.tensors[f"timestep.{t}"][0]) for t in (951, 501, 1)] == [951, 501, 1]


def test_text_states_follow_each_other_in_a_batch() -> None:
    golden, spec = Golden(), graph("unet", batch=2)
    states = np.arange(3, dtype=np.float32)[:, None, None] * np.ones((3, 77, 768), np.float32)
    case = unet_cases(golden, spec, {"encoder_hidden_states": states}, architecture())[0]
    text = golden_inputs(case, spec, golden.tensors)["encoder_hidden_states"]
    assert text[:, 0, 0].tolist() == [0, 1]


def test_large_batches_get_noise_of_the_states_scale() -> None:
    golden, spec = Golden(), graph("unet", batch=8)
    states = np.full((3, 77, 768), 2.5, np.float32)
    (case, *_) = unet_cases(golden, spec, {"encoder_hidden_states": states}, architecture())
    recipe = case.inputs["encoder_hidden_states"]
    assert isinstance(recipe, Noise)
    assert recipe.scale == pytest.approx(2.5)


def test_longer_prompts_get_noise_of_the_states_scale() -> None:
    network = next(network for network in NETWORKS if network.name == "unet")
    *_, spec = graph_specs(network, architecture(), [(512, 512)], [1], "fp32", chunks=2)
    states = np.full((3, 77, 768), 2.5, np.float32)
    golden = Golden()
    case = unet_cases(golden, spec, {"encoder_hidden_states": states}, architecture())[0]
    text = golden_inputs(case, spec, golden.tensors)["encoder_hidden_states"]
    assert text.shape == (1, 154, 768)
    assert float(np.std(text.astype(np.float64))) == pytest.approx(2.5, rel=0.05)


def test_learned_words_are_measured_too() -> None:
    network = next(network for network in NETWORKS if network.name == "text_encoder")
    *_, spec = graph_specs(network, architecture(), [], [], "fp32")
    golden, ids = Golden(), [np.full((1, 77), i, np.int64) for i in range(3)]
    plain, learned = (
        golden_inputs(case, spec, golden.tensors) for case in prompt_cases(golden, spec, ids, 0.02)
    )
    assert plain["input_ids"].tolist() == ids[1].tolist()
    assert sorted(set(learned["input_ids"].ravel().tolist())) == [-75, -1, 1]
    assert float(np.std(plain["extra_embeddings"])) == pytest.approx(0.02, rel=0.05)


def test_large_outputs_are_sampled_at_the_same_places() -> None:
    golden = Golden()
    output = np.arange(3 * 512 * 512, dtype=np.float32)
    kept = golden.keep_output("a", output.reshape(1, 3, 512, 512))
    golden.keep_output("b", output)
    assert kept == Stored("a", "places.786432")
    places = golden.tensors["places.786432"]
    assert len(np.unique(places)) == len(places) == 1 << 15
    assert np.array_equal(golden.tensors["a"], places.astype(np.float32))
    assert set(golden.tensors) == {"a", "b", "places.786432"}


def test_small_outputs_are_kept_whole() -> None:
    golden = Golden()
    assert golden.keep_output("a", np.zeros((2, 3), np.float16)) == Stored("a")
    assert golden.tensors["a"].dtype == np.float32


def test_noise_cases_have_seeds_of_their_own() -> None:
    cases = noise_cases(graph("vae_decoder"), scale=5.0)
    assert [case.inputs["latent_sample"] for case in cases] == [Noise(11, 5.0), Noise(12, 5.0)]
