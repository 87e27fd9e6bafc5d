"""Long, weighted and learned prompts, and clip skip, against transformers, diffusers and A1111."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion.golden import relative_l2
from tests.checkpoints import diffusers_latents, diffusers_pipeline

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CHECKPOINT = Path(__file__).parents[1] / "models" / "shapes" / "checkpoint"
PROMPT = "a red circle above a blue square"
LONG = "a small red circle on a white background, " * 9  # two chunks
LONGER = "a big green cross, a yellow triangle, " * 18  # three
STATES_L2 = 1e-5
LATENTS_L2 = 1e-3
CHUNKS = 3

# diffusers 0.42.1 hands tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with graphs for prompts of up to three chunks."""
    from edgediffusion_export.exporter import export_checkpoint
    from edgediffusion_export.options import ExportOptions

    output = tmp_path_factory.mktemp("prompts") / "bundle"
    options = ExportOptions(
        checkpoint=str(CHECKPOINT), output=output, chunks=CHUNKS, batches=(2,), store="source"
    )
    return export_checkpoint(options)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[ed.Pipeline]:
    with ed.Pipeline.open(bundle) as pipeline:
        yield pipeline


def load_reference() -> Any:
    pipeline = diffusers_pipeline(CHECKPOINT)
    # diffusers 0.42.1 looks for the final norm where transformers kept it before version 5.
    text = pipeline.text_encoder
    if not hasattr(text, "text_model"):
        object.__setattr__(
            text, "text_model", SimpleNamespace(final_layer_norm=text.final_layer_norm)
        )
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


@pytest.fixture(scope="module")
def reference() -> Any:
    """diffusers' own pipeline on the demo checkpoint, upcast to fp32. Nobody may change it."""
    return load_reference()


def encode(reference: Any, prompt: str, clip_skip: int | None = None) -> Array:
    """diffusers' own embeddings of a prompt."""
    with torch.no_grad():
        states, _ = reference.encode_prompt(prompt, "cpu", 1, False, clip_skip=clip_skip)
    found: Array = states.numpy()
    return found


def reference_latents(reference: Any, **arguments: Any) -> Array:
    """diffusers' latents of the pictures that `latents` asks for."""
    made = diffusers_latents(reference, 7, num_inference_steps=4, guidance_scale=4.0, **arguments)
    latents: Array = made.numpy()
    return latents


def latents(pipe: ed.Pipeline, **asked: Any) -> Array:
    request = ed.Request(steps=4, guidance=4.0, seed=7, sampler="ddim", **asked)
    return pipe.generate(request).latents


# --- the default ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "", LONG, "((a:1.3)) [b] BREAK c", "a!b ! 猫"])
def test_without_options_prompts_are_those_of_diffusers(
    pipe: ed.Pipeline, reference: Any, prompt: str
) -> None:
    embedded = pipe.embed([prompt])
    assert relative_l2(embedded.hidden, encode(reference, prompt)) <= STATES_L2
    assert bool(embedded.truncated[0]) == (prompt == LONG)


# --- clip skip -----------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_clip_skip_is_that_of_diffusers(pipe: ed.Pipeline, reference: Any, skip: int) -> None:
    want = encode(reference, PROMPT, clip_skip=skip)
    assert relative_l2(pipe.embed([PROMPT], clip_skip=skip).hidden, want) <= STATES_L2
    others = [encode(reference, PROMPT, clip_skip=other) for other in range(4) if other != skip]
    assert min(relative_l2(other, want) for other in others) > 0.01


def test_clip_skip_leaves_the_pooled_vector_alone(pipe: ed.Pipeline) -> None:
    plain, skipped = pipe.embed([PROMPT]), pipe.embed([PROMPT], clip_skip=1)
    np.testing.assert_allclose(skipped.pooled, plain.pooled, rtol=1e-4, atol=1e-4)


def test_a_picture_with_clip_skip_is_that_of_diffusers(pipe: ed.Pipeline, reference: Any) -> None:
    """The negative prompt keeps all layers in diffusers."""
    want = reference_latents(reference, prompt=PROMPT, negative_prompt="blue", clip_skip=1)
    got = latents(pipe, prompt=PROMPT, negative="blue", clip_skip=1)
    assert relative_l2(got, want) <= LATENTS_L2
    both = latents(pipe, prompt=PROMPT, negative="blue", clip_skip=1, negative_clip_skip=1)
    want = reference_latents(
        reference,
        prompt_embeds=torch.from_numpy(encode(reference, PROMPT, clip_skip=1)),
        negative_prompt_embeds=torch.from_numpy(encode(reference, "blue", clip_skip=1)),
    )
    assert relative_l2(both, want) <= LATENTS_L2
    assert relative_l2(got, both) > 10 * LATENTS_L2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"clip_skip": 4},
            r"clip_skip must be at most 3, no more of the text encoder's layers can be",
        ),
        ({"negative_clip_skip": 9}, r"negative_clip_skip must be at most 3"),
    ],
)
def test_a_clip_skip_that_the_encoder_has_no_layers_for(
    pipe: ed.Pipeline, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ed.RequestError, match=message):
        pipe.stream(ed.Request(prompt=PROMPT, **asked))


# --- weights -------------------------------------------------------------------------------------


def emphasized(states: Array, weights: list[float]) -> Array:
    """A1111's "Original" emphasis in its own words: PyTorch, float32, one chunk."""
    multipliers = torch.ones(states.shape[1])
    multipliers[1 : 1 + len(weights)] = torch.tensor(weights)
    z = torch.from_numpy(states)
    weighted = z * multipliers.reshape(1, -1, 1)
    made: Array = (weighted * (z.mean() / weighted.mean())).numpy()
    return made


# tokens of "a red circle above a blue square": one for each word in the demo's vocabulary
WEIGHTED = [
    ("a (red) circle above a blue square", [1, 1.1, 1, 1, 1, 1, 1]),
    ("a ((red)) circle above a [blue] square", [1, 1.21, 1, 1, 1, 1 / 1.1, 1]),
    ("a (red circle:1.4) above a (blue (square:0.5):1.2)", [1, 1.4, 1.4, 1, 1, 1.2, 0.6]),
    ("(a red circle above", [1.1] * 4),
]


@pytest.mark.parametrize(("prompt", "weights"), WEIGHTED)
def test_weights_are_those_of_a1111(
    pipe: ed.Pipeline, reference: Any, prompt: str, weights: list[float]
) -> None:
    plain = " ".join(PROMPT.split()[: len(weights)])
    assert len(reference.tokenizer(plain).input_ids) == len(weights) + 2
    want = emphasized(encode(reference, plain), weights)
    got = pipe.embed([prompt], prompt_syntax="weighted")
    assert relative_l2(got.hidden, want) <= 1e-4
    np.testing.assert_array_equal(got.pooled, pipe.embed([plain]).pooled)
    assert relative_l2(encode(reference, prompt), want) > 0.01


def test_weights_change_the_picture_and_weight_1_does_not(pipe: ed.Pipeline) -> None:
    plain = latents(pipe, prompt=PROMPT)
    same = latents(
        pipe, prompt="a (red circle:1.0) above \\a blue square", prompt_syntax="weighted"
    )
    heavy = latents(pipe, prompt="a (red circle:1.5) above a blue square", prompt_syntax="weighted")
    assert same.tobytes() == plain.tobytes()
    assert relative_l2(heavy, plain) > 10 * LATENTS_L2


# --- long prompts --------------------------------------------------------------------------------


def chunked(reference: Any, prompt: str, count: int) -> Array:
    """Chunks of 75 tokens through transformers' own model, one by one."""
    ids = reference.tokenizer(prompt, add_special_tokens=False).input_ids
    bos, eos = reference.tokenizer.bos_token_id, reference.tokenizer.eos_token_id
    rows = []
    for i in range(count):
        body = ids[75 * i : 75 * (i + 1)]
        rows.append([bos, *body, *[eos] * (76 - len(body))])
    with torch.no_grad():
        states = reference.text_encoder(torch.tensor(rows))[0]
    made: Array = states.reshape(1, -1, states.shape[-1]).numpy()
    return made


@pytest.mark.parametrize(("prompt", "count"), [(PROMPT, 1), (LONG, 2), (LONGER, 3)])
def test_a_long_prompt_is_its_chunks_side_by_side(
    pipe: ed.Pipeline, reference: Any, prompt: str, count: int
) -> None:
    embedded = pipe.embed([prompt], long_prompts="chunks")
    assert embedded.hidden.shape[1] == 77 * count
    assert embedded.truncated == ("",)
    assert relative_l2(embedded.hidden, chunked(reference, prompt, count)) <= STATES_L2


@pytest.mark.parametrize(("prompt", "count"), [(LONG, 2), (LONGER, 3)])
def test_a_picture_of_a_long_prompt(
    pipe: ed.Pipeline, reference: Any, prompt: str, count: int
) -> None:
    """The short negative prompt gets empty chunks."""
    want = reference_latents(
        reference,
        prompt_embeds=torch.from_numpy(chunked(reference, prompt, count)),
        negative_prompt_embeds=torch.from_numpy(chunked(reference, "blue", count)),
    )
    asked = {"prompt": prompt, "negative": "blue"}
    got = latents(pipe, **asked, long_prompts="chunks")
    assert relative_l2(got, want) <= LATENTS_L2
    assert relative_l2(latents(pipe, **asked), want) > 10 * LATENTS_L2


def test_a_break_begins_a_new_chunk(pipe: ed.Pipeline, reference: Any) -> None:
    asked: dict[str, Any] = {"prompt_syntax": "weighted", "long_prompts": "chunks"}
    got = pipe.embed(["a red circle BREAK a (blue:1.3) square"], **asked).hidden
    first, second = encode(reference, "a red circle"), encode(reference, "a blue square")
    want = np.concatenate([first, emphasized(second, [1, 1.3, 1])], axis=1)
    assert relative_l2(got, want) <= 1e-4


def test_texts_of_several_lengths_are_embedded_alike(pipe: ed.Pipeline, reference: Any) -> None:
    got = pipe.embed([PROMPT, LONG], long_prompts="chunks").hidden
    assert got.shape[:2] == (2, 154)
    assert relative_l2(got[:1], chunked(reference, PROMPT, 2)) <= STATES_L2


def test_a_bundle_without_graphs_for_so_many_chunks_names_the_fix(pipe: ed.Pipeline) -> None:
    message = (
        r"the negative takes 4 chunks of the text encoder, bundle bundle has UNet graphs for at "
        r"most 3: make it shorter, use long_prompts='truncate', or export again with --chunks 4"
    )
    request = ed.Request(prompt=LONG, negative="red " * 226, long_prompts="chunks", steps=1)
    with pytest.raises(ed.RequestError, match=message.replace("bundle bundle", "bundle .*")):
        pipe.generate(request)


# --- textual inversion ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One vector in diffusers' format, and three in A1111's."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("embeddings")
    draw = np.random.default_rng(0)
    one = (draw.standard_normal(128) * 0.05).astype(np.float32)
    three = (draw.standard_normal((3, 128)) * 0.05).astype(np.float32)
    save_file({"<blob>": one}, folder / "learned_embeds.safetensors")
    save_file({"emb_params": three}, folder / "Easy-Shape.safetensors")
    return {"<blob>": folder / "learned_embeds.safetensors", "Easy-Shape": folder / "Easy-Shape"
            ".safetensors"}  # fmt: skip


@pytest.fixture(scope="module")
def taught(learned: dict[str, Path]) -> Any:
    """diffusers' pipeline with both embeddings loaded by its own loader."""
    pipeline = load_reference()
    for name, path in learned.items():
        # of a name with capitals and several vectors, diffusers 0.42.1 uses only the first
        pipeline.load_textual_inversion(str(path), token=name.lower())
    return pipeline


@pytest.mark.parametrize(
    "prompt",
    [
        "a <blob> circle",
        "<blob>",
        "a red Easy-Shape, above a <blob>. Easy-Shape <blob>",
        "(Easy-Shape) on a white background",
        "red " * 73 + "Easy-Shape blue",  # cut in the middle of the three
        "a red circle",
    ],
)
def test_learned_words_are_those_of_diffusers(
    pipe: ed.Pipeline, taught: Any, learned: dict[str, Path], prompt: str
) -> None:
    embedded = pipe.embed([prompt], embeddings=list(learned.values()))
    assert relative_l2(embedded.hidden, encode(taught, prompt.lower())) <= STATES_L2
    assert embedded.truncated == ("Easy-Shape blue" if "blue" in prompt else "",)


def test_learned_words_go_with_clip_skip(
    pipe: ed.Pipeline, taught: Any, learned: dict[str, Path]
) -> None:
    prompt = "a <blob> above a blue Easy-Shape"
    want = encode(taught, prompt.lower(), clip_skip=1)
    got = pipe.embed([prompt], embeddings=list(learned.values()), clip_skip=1)
    assert relative_l2(got.hidden, want) <= STATES_L2


def test_a_picture_with_learned_words_is_that_of_diffusers(
    pipe: ed.Pipeline, taught: Any, learned: dict[str, Path]
) -> None:
    words = {"prompt": "a <blob> above a blue square"}
    want = reference_latents(taught, **words, negative_prompt="easy-shape")
    files = list(learned.values())
    got = latents(pipe, **words, negative="Easy-Shape", embeddings=files)
    assert relative_l2(got, want) <= LATENTS_L2
    assert relative_l2(latents(pipe, **words, negative="Easy-Shape"), want) > 10 * LATENTS_L2


def test_learned_words_have_weights_and_move_whole_into_the_next_chunk(
    pipe: ed.Pipeline, taught: Any, learned: dict[str, Path]
) -> None:
    asked: dict[str, Any] = {
        "prompt_syntax": "weighted",
        "long_prompts": "chunks",
        "embeddings": list(learned.values()),
    }
    got = pipe.embed(["red " * 73 + "(easy-shape:1.2) blue"], **asked).hidden
    second = emphasized(encode(taught, "easy-shape blue"), [1.2, 1.2, 1.2, 1])
    want = np.concatenate([encode(taught, "red " * 73), second], axis=1)
    assert relative_l2(got, want) <= 1e-4


# --- recipes -------------------------------------------------------------------------------------


@pytest.fixture
def everything(learned: dict[str, Path]) -> ed.Request:
    return ed.Request(
        prompt=f"a (<blob>:1.2) above {LONG} BREAK shape!",
        negative="[blue]",
        steps=2,
        seed=3,
        prompt_syntax="weighted",
        long_prompts="chunks",
        clip_skip=1,
        negative_clip_skip=2,
        embeddings=[
            learned["<blob>"],
            ed.TextualInversion(learned["Easy-Shape"], name="shape"),
        ],
    )


def test_a_picture_is_made_again_from_its_own_file(
    pipe: ed.Pipeline, everything: ed.Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    learned: dict[str, Path],
) -> None:  # fmt: skip
    result = pipe.generate(everything)
    result.save(tmp_path / "a.png")
    again = ed.request_from_png(tmp_path / "a.png")
    assert [e.name for e in again.embeddings] == ["<blob>", "shape"]  # type: ignore[union-attr]
    assert all(os.sep not in str(e.file) for e in again.embeddings)  # type: ignore[union-attr]
    assert replace(again, embeddings=()) == replace(result.request, embeddings=())
    monkeypatch.chdir(learned["<blob>"].parent)
    assert pipe.generate(again).images.tobytes() == result.images.tobytes()
    assert pipe.generate(result.request).images.tobytes() == result.images.tobytes()


def test_a_recipe_knows_its_embeddings(
    pipe: ed.Pipeline, everything: ed.Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    learned: dict[str, Path],
) -> None:  # fmt: skip
    pipe.generate(everything).save(tmp_path / "a.png")
    again = ed.request_from_png(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ed.RequestError, match=r"there is no embedding learned_embeds\.safetensors: "
    ):
        pipe.stream(again)
    other = learned["Easy-Shape"].read_bytes()
    (tmp_path / "learned_embeds.safetensors").write_bytes(other)
    with pytest.raises(ed.RequestError, match=r"has sha256 \w{12}…, expected \w{12}…: it is anoth"):
        pipe.stream(again)
