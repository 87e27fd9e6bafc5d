"""Which graph of the text encoder gets what, with an engine that computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.conditioning import PromptOptions
from edgediffusion.engine import Engine
from edgediffusion.manifest import Manifest
from edgediffusion.text_encoder import TextEncoder, check_clip_skip
from edgediffusion.textual_inversion import Embedding
from tests.manifests import tensor

WIDTH, LAYERS = 128, 3
BLOB = Embedding("blob", np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH), "", "")


class _Recorder:
    """A backend that remembers its inputs; layer n of its states is n everywhere."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.calls: list[dict[str, Any]] = []

    def run(self, inputs: Any) -> list[Any]:
        self.calls.append(dict(inputs))
        made = [np.zeros(out.shape, out.dtype) for out in self.spec.outputs]
        if self.spec.variant == "prompt":
            made[0] += np.arange(LAYERS + 1).reshape(1, -1, 1, 1)
        return made

    def rest(self) -> None: ...

    def close(self) -> None:
        pass


@pytest.fixture
def bundle(demo: Path) -> ed.Bundle:
    """The demo with (another) graph for prompts in fp16 in its manifest, on no disk."""
    import msgspec

    data = msgspec.to_builtins(ed.Bundle.open(demo).manifest)
    graphs = data["components"]["text_encoder"]["graphs"]
    prompt = graphs[0] | {
        "file": "text_encoder/b1.prompt.onnx",
        "variant": "prompt",
        "inputs": [
            tensor("input_ids", 1, 77, dtype="int64"),
            tensor("extra_embeddings", 75, WIDTH, dtype="float16"),
        ],
        "outputs": [
            tensor("skip_states", 1, LAYERS + 1, 77, WIDTH, dtype="float16"),
            tensor("pooler_output", 1, WIDTH, dtype="float16"),
        ],
    }
    data["components"]["text_encoder"]["graphs"] = [graphs[0], prompt]
    return ed.Bundle(demo, msgspec.convert(data, Manifest))


@pytest.fixture
def backends(bundle: ed.Bundle) -> dict[str, _Recorder]:
    graphs = bundle.manifest.components["text_encoder"].graphs
    return {graph.variant: _Recorder(graph) for graph in graphs}


@pytest.fixture
def encoder(bundle: ed.Bundle, backends: dict[str, _Recorder]) -> TextEncoder:
    return TextEncoder(
        bundle, lambda v, _: Engine(backends[v].spec, "cpu", backends[v]), "text_encoder"
    )


def test_a_plain_prompt_takes_the_plain_graph(
    encoder: TextEncoder, backends: dict[str, _Recorder]
) -> None:
    prompt = encoder.read("a blob", PromptOptions())
    assert encoder.variants(prompt) == {"plain"}
    states = encoder.encode(prompt)
    assert states.hidden.shape == (1, 77, WIDTH)
    assert states.pooled.shape == (1, WIDTH)
    assert (len(backends["plain"].calls), len(backends["prompt"].calls)) == (1, 0)


def test_learned_words_take_the_graph_that_has_room_for_them(
    encoder: TextEncoder, backends: dict[str, _Recorder]
) -> None:
    prompt = encoder.read("a blob", PromptOptions(embeddings=(BLOB,)))
    assert encoder.variants(prompt) == {"prompt"}
    assert encoder.encode(prompt).hidden.dtype == np.float32
    (call,) = backends["prompt"].calls
    assert call["input_ids"][0, 2:4].tolist() == [-1, -2]
    assert call["extra_embeddings"].dtype == np.float16
    np.testing.assert_array_equal(call["extra_embeddings"][:2], BLOB.vectors.astype(np.float16))
    assert not call["extra_embeddings"][2:].any()


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_takes_the_states_of_its_layer(encoder: TextEncoder, skip: int) -> None:
    prompt = encoder.read("a", PromptOptions())
    assert encoder.variants(prompt, 1, skip) == {"prompt"}
    assert (encoder.encode(prompt, 1, skip).hidden == skip).all()


def test_a_shorter_prompt_is_filled_up_with_empty_chunks(
    encoder: TextEncoder, backends: dict[str, _Recorder]
) -> None:
    prompt = encoder.read("a blob", PromptOptions(embeddings=(BLOB,)))
    assert encoder.variants(prompt, 3) == {"plain", "prompt"}
    assert encoder.encode(prompt, 3).hidden.shape == (1, 231, WIDTH)
    empty = encoder.read("", PromptOptions()).chunks[0].ids
    assert [np.array_equal(c["input_ids"], empty) for c in backends["plain"].calls] == [True, True]


def test_clip_skip_is_at_most_the_number_of_layers(bundle: ed.Bundle) -> None:
    assert [check_clip_skip("clip_skip", n, bundle) for n in (None, 0, 3)] == [0, 0, 3]
    with pytest.raises(ed.RequestError, match="clip_skip must be at most 3, no more of the text"):
        check_clip_skip("clip_skip", 4, bundle)


def test_variants_are_found_by_name(bundle: ed.Bundle) -> None:
    assert bundle.variants("text_encoder") == {"plain", "prompt"}
    assert bundle.graph("text_encoder").variant == "plain"
    assert bundle.graph("text_encoder", variant="prompt").file == "text_encoder/b1.prompt.onnx"
    assert bundle.batches("text_encoder", None, "prompt") == {1}
    message = r"no text_encoder graph for batch 1, chunks-2; it has batch 1, batch 1, prompt\."
    with pytest.raises(ed.RequestError, match=message):
        bundle.graph("text_encoder", variant="chunks-2")
