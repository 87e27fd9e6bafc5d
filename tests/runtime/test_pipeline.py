from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediffusion as ed
from edgediffusion import pipeline
from edgediffusion.calls import Call
from edgediffusion.denoiser import Denoiser
from edgediffusion.engine import Engine
from edgediffusion.manifest import PLAIN
from edgediffusion.unet import Unet

REQUEST = ed.Request(prompt="a red circle", steps=3, seed=7)


def test_a_picture_has_the_shape_and_facts_that_were_asked_for(pipe: ed.Pipeline) -> None:
    result = pipe.generate(REQUEST)
    assert result.images.shape == (1, 128, 128, 3)
    assert result.images.dtype == np.uint8
    assert result.latents.dtype == np.float32
    assert result.seeds == (7,)
    assert result.request.steps == 3
    assert result.request.guidance == pipe.bundle.manifest.defaults.guidance
    assert len(result.timings.step) == len(result.timings.unet)
    assert result.device == "cpu"


def test_the_same_request_gives_the_same_bytes(pipe: ed.Pipeline, demo: Path) -> None:
    first = pipe.generate(REQUEST)
    again = pipe.generate(REQUEST)
    assert first.latents.tobytes() == again.latents.tobytes()
    with ed.Pipeline.open(demo) as other:
        assert other.generate(REQUEST).images.tobytes() == first.images.tobytes()


def test_another_seed_or_prompt_gives_another_picture(pipe: ed.Pipeline) -> None:
    pictures = {
        pipe.generate(ed.Request(prompt=prompt, steps=3, seed=seed)).images.tobytes()
        for prompt in ("a red circle", "a blue square")
        for seed in (0, 1)
    }
    assert len(pictures) == 4


def test_seed_zero_is_a_seed(pipe: ed.Pipeline) -> None:
    result = pipe.generate(ed.Request(steps=1, seed=0))
    assert result.seeds == (0,)
    assert result.images.tobytes() == pipe.generate(ed.Request(steps=1, seed=0)).images.tobytes()


def test_no_seed_draws_one_and_reports_it(pipe: ed.Pipeline) -> None:
    drawn = pipe.generate(ed.Request(steps=1))
    again = pipe.generate(ed.Request(steps=1, seed=drawn.seeds[0]))
    assert again.images.tobytes() == drawn.images.tobytes()


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_image_i_of_a_batch_is_the_single_picture_of_its_seed(
    pipe: ed.Pipeline, sampler: str
) -> None:
    batch = pipe.generate(ed.Request(prompt="a cross", steps=3, seed=5, batch=3, sampler=sampler))
    assert batch.seeds == (5, 6, 7)
    for i, seed in enumerate(batch.seeds):
        single = pipe.generate(ed.Request(prompt="a cross", steps=3, seed=seed, sampler=sampler))
        assert single.latents.tobytes() == batch.latents[i : i + 1].tobytes()
        assert single.images.tobytes() == batch.images[i : i + 1].tobytes()


def test_seeds_may_be_given_one_by_one(pipe: ed.Pipeline) -> None:
    result = pipe.generate(ed.Request(steps=1, seed=[9, 2], batch=2))
    single = pipe.generate(ed.Request(steps=1, seed=2))
    assert result.images[1].tobytes() == single.images[0].tobytes()


def test_the_diffusers_layout_draws_the_batch_as_one_tensor(pipe: ed.Pipeline) -> None:
    request = ed.Request(steps=1, seed=3, batch=2, noise_layout="diffusers-batch")
    batch = pipe.generate(request)
    per_image = pipe.generate(ed.Request(steps=1, seed=3, batch=2))
    assert batch.images[1].tobytes() != per_image.images[1].tobytes()


def test_guidance_of_one_leaves_the_negative_prompt_out(pipe: ed.Pipeline) -> None:
    plain = pipe.generate(ed.Request(prompt="a cross", steps=2, seed=1, guidance=1))
    other = pipe.generate(
        ed.Request(prompt="a cross", negative="red", steps=2, seed=1, guidance=1.0)
    )
    assert plain.images.tobytes() == other.images.tobytes()
    guided = pipe.generate(ed.Request(prompt="a cross", steps=2, seed=1, guidance=4))
    assert guided.images.tobytes() != plain.images.tobytes()


def test_the_stream_yields_every_step_and_the_last_carries_the_result(pipe: ed.Pipeline) -> None:
    steps = list(pipe.stream(ed.Request(prompt="a cross", steps=4, seed=1, sampler="euler")))
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.total for step in steps} == {4}
    assert [step.result is None for step in steps] == [True, True, True, False]
    sigmas = [step.sigma for step in steps]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0


def test_a_preview_by_the_tiny_decoder_is_of_full_size_and_near_the_picture(
    demo: Path,
) -> None:
    with ed.Pipeline.open(demo, device="cpu") as pipe:
        steps = list(pipe.stream(ed.Request(prompt="a red circle", steps=4, seed=3)))
        assert steps[-1].result is not None
        picture = steps[-1].result.images.astype(np.float32)
        shown = [step.preview("tiny").astype(np.float32) for step in steps]
        assert {each.shape for each in shown} == {(1, 128, 128, 3)}
        errors = [float(np.abs(each - picture).mean()) for each in shown]
        assert errors[-1] < 12
        assert errors[-1] < errors[0]
        request = ed.Request(prompt="a red circle", steps=4, seed=3, decoder="tiny")
        own = pipe.generate(request).images
        assert np.array_equal(own, steps[-1].preview("tiny"))


def test_a_preview_between_two_steps_changes_no_picture(demo: Path) -> None:
    request = ed.Request(prompt="a red circle", steps=3, seed=3)
    with ed.Pipeline.open(demo, device="cpu") as pipe:
        plain = pipe.generate(request).images
        for step in pipe.stream(request):
            step.preview("tiny")
        assert step.result is not None
        assert np.array_equal(step.result.images, plain)


def test_previews_that_cannot_be_had_are_said(demo: Path) -> None:
    request = ed.Request(prompt="a red circle", steps=2, seed=3)
    with ed.Pipeline.open(demo, device="cpu", residency="one") as pipe:
        (first, *_) = pipe.stream(request)
        with pytest.raises(ed.RequestError, match=r"residency 'one' has no room for: use preview"):
            first.preview("tiny")
        with pytest.raises(ed.RequestError, match="unknown preview decoder 'tni': did you mean"):
            first.preview("tni")  # type: ignore[arg-type]


def test_previews_resemble_their_pictures(pipe: ed.Pipeline) -> None:
    previews, pictures = [], []
    for background in ("white", "black", "blue", "yellow", "purple", "green"):
        request = ed.Request(prompt=f"a circle on a {background} background", steps=8, seed=1)
        *_, last = pipe.stream(request)
        assert last.result is not None
        assert last.preview().shape == (1, 16, 16, 3)
        previews.append(last.preview())
        pictures.append(last.result.images.reshape(1, 16, 8, 16, 8, 3).mean(axis=(2, 4)))
    likeness = np.corrcoef(np.ravel(previews), np.ravel(pictures))[0, 1]
    assert likeness > 0.6


def test_leaving_the_stream_early_frees_the_pipeline(pipe: ed.Pipeline) -> None:
    for _ in pipe.stream(REQUEST):
        break
    assert pipe.generate(REQUEST).images.shape == (1, 128, 128, 3)


def test_a_call_inside_ones_own_stream_is_an_error_and_not_a_deadlock(pipe: ed.Pipeline) -> None:
    stream = pipe.stream(REQUEST)
    next(stream)
    with pytest.raises(ed.EdgeDiffusionError, match="still inside a stream"):
        pipe.embed(["a cross"])
    stream.close()
    pipe.embed(["a cross"])


def test_closing_abandons_an_unfinished_stream(demo: Path) -> None:
    with ed.Pipeline.open(demo) as pipe:
        stream = pipe.stream(REQUEST)
        next(stream)
    assert list(stream) == []


def test_cancel_works_from_another_thread(pipe: ed.Pipeline) -> None:
    stream = pipe.stream(ed.Request(steps=50, seed=1))
    next(stream)
    thread = threading.Thread(target=pipe.cancel)
    thread.start()
    thread.join()
    with pytest.raises(ed.Cancelled, match="the run was cancelled"):
        next(stream)
    assert pipe.generate(REQUEST).seeds == (7,)


def test_calls_from_several_threads_queue(pipe: ed.Pipeline) -> None:
    expected = pipe.generate(REQUEST).images.tobytes()
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: got.append(pipe.generate(REQUEST).images.tobytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 4


def test_embeddings_have_their_shapes_and_tell_texts_apart(pipe: ed.Pipeline) -> None:
    width = pipe.bundle.manifest.conditioning.width
    embeddings = pipe.embed(["a red circle", "a blue square", "a red circle"])
    assert embeddings.hidden.shape == (3, 77, width)
    assert embeddings.pooled.shape == (3, width)
    assert np.array_equal(embeddings.pooled[0], embeddings.pooled[2])
    assert not np.allclose(embeddings.pooled[0], embeddings.pooled[1])


@pytest.mark.parametrize("texts", [[], "a text that is not a list"])
def test_embed_takes_a_list(pipe: ed.Pipeline, texts: Any) -> None:
    with pytest.raises(ed.RequestError, match="embed takes a list of at least one text"):
        pipe.embed(texts)


def test_an_empty_prompt_is_valid(pipe: ed.Pipeline) -> None:
    assert pipe.generate(ed.Request(prompt="", steps=1, seed=1)).truncated == {}


@pytest.mark.parametrize(
    "prompt",
    ["word " * 10_000, "🙂" * 400, "a\u200b" * 300, "שלום עולם " * 60, "\x00" * 100],
    ids=["10,000 words", "emoji", "zero width", "right to left", "NUL"],
)
def test_what_does_not_fit_is_reported(pipe: ed.Pipeline, prompt: str) -> None:
    result = pipe.generate(ed.Request(prompt=prompt, steps=1, seed=1))
    cut = result.truncated["prompt"]
    assert cut
    assert prompt.endswith(cut)


def test_half_a_surrogate_pair_is_refused(pipe: ed.Pipeline) -> None:
    with pytest.raises(ed.RequestError, match="the prompt is not valid Unicode text"):
        pipe.generate(ed.Request(prompt="\ud800", steps=1))


def test_weights_need_no_graph_of_their_own(pipe: ed.Pipeline) -> None:
    plain = pipe.embed(["a red circle"]).hidden
    same = pipe.embed(["a (red:1) circle"], prompt_syntax="weighted").hidden
    heavy = pipe.embed(["a (red:1.4) circle"], prompt_syntax="weighted").hidden
    assert same.tobytes() == plain.tobytes()
    assert np.abs(heavy[0, 2] - plain[0, 2]).max() > 0.1
    assert heavy.mean() == pytest.approx(plain.mean(), rel=1e-3)


def test_chunks_are_embedded_side_by_side(pipe: ed.Pipeline) -> None:
    texts = ["red " * 75 + "a blue square", "a cross"]
    long = pipe.embed(texts, long_prompts="chunks")
    assert long.hidden.shape[:2] == (2, 154)
    assert long.truncated == ("", "")
    apart = pipe.embed(["red " * 75, "a blue square", "a cross", ""]).hidden
    assert long.hidden[:, :77].tobytes() == apart[[0, 2]].tobytes()
    assert long.hidden[:, 77:].tobytes() == apart[[1, 3]].tobytes()
    assert long.pooled.shape == (2, 128)


def test_a_bundle_without_graphs_for_long_prompts_names_the_fix(pipe: ed.Pipeline) -> None:
    request = ed.Request(prompt="red " * 76 * 20, long_prompts="chunks", steps=1)
    message = r"the prompt takes 21 chunks .* at most \d+: .* or export again with --chunks 21"
    with pytest.raises(ed.RequestError, match=message):
        pipe.generate(request)


def test_a_break_without_chunks_is_refused(pipe: ed.Pipeline) -> None:
    with pytest.raises(ed.RequestError, match="BREAK begins a new chunk, but long_prompts is 'tr"):
        pipe.generate(ed.Request(prompt="a BREAK b", prompt_syntax="weighted", steps=1))


class _Broken:
    """An engine's backend that computes one constant."""

    def __init__(self, spec: Any, value: float) -> None:
        self.spec, self.value = spec, value

    def run(self, inputs: object) -> list[Any]:
        return [np.full(out.shape, self.value, out.dtype) for out in self.spec.outputs]

    def rest(self) -> None: ...

    def close(self) -> None:
        pass


def break_engine(pipe: ed.Pipeline, component: str, batch: int, value: float) -> None:
    spec = pipe.bundle.graph(component, batch=batch, size=(128, 128))
    pipe._residents._engines[spec.file] = Engine(spec, "cpu", _Broken(spec, value))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("component", "batch", "message"),
    [
        ("text_encoder", 1, "text_encoder computed NaN or infinity from the prompt"),
        ("unet", 2, "unet computed NaN or infinity at timestep 667"),
        ("vae_decoder", 1, "vae_decoder computed NaN or infinity from finite latents"),
    ],
)
def test_nan_is_never_returned_and_the_component_is_named(
    demo: Path, component: str, batch: int, message: str, value: float
) -> None:
    with ed.Pipeline.open(demo) as pipe:
        break_engine(pipe, component, batch, value)
        with pytest.raises(ed.NumericalError, match=message):
            pipe.generate(replace(REQUEST, sampler="ddim"))


def test_a_flat_picture_is_never_returned(demo: Path) -> None:
    with ed.Pipeline.open(demo) as pipe:
        break_engine(pipe, "vae_decoder", 1, 0.0)
        with pytest.raises(ed.NumericalError, match=r"decoded picture 0 to one flat colour \[128"):
            pipe.generate(REQUEST)


def test_without_a_batch_1_graph_guidance_cannot_be_left_out(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ed.Bundle, "batches", lambda *_: {2})
    with ed.Pipeline.open(demo) as pipe:
        assert pipe.generate(REQUEST).request.guidance > 1
        with pytest.raises(
            ed.RequestError, match="has UNet graphs of batch 2 only, a step without"
        ):
            pipe.generate(ed.Request(steps=1, guidance=1))


def test_two_calls_of_the_batch_1_graph_equal_one_of_the_batch_2_graph(pipe: ed.Pipeline) -> None:
    rows = {"encoder_hidden_states": pipe.embed(["", "a red circle"]).hidden}
    noise = ed.randn((1, 4, 16, 16), seed=0)
    made = []
    for batch in (1, 2):
        unet = Unet({batch: pipe.engine("unet", batch, (128, 128))})
        made.append(Denoiser({PLAIN: unet}, [Call(guided=True)], rows, 4.0)(noise, 500.0))
    np.testing.assert_allclose(made[0], made[1], atol=1e-4)


def test_an_unknown_device_gets_its_near_matches(demo: Path) -> None:
    with pytest.raises(ed.DeviceError, match=r"unknown device 'cuda0': did you mean cuda"):
        ed.Pipeline.open(demo, device="cuda0")


def test_negative_threads_are_refused(demo: Path) -> None:
    with pytest.raises(ed.DeviceError, match="threads must be at least 0"):
        ed.Pipeline.open(demo, threads=-1)


def test_the_noise_asked_for_is_all_the_noise() -> None:
    # The path of dpmpp_sde has a source of its own; it must not stay on the other numbers.
    with ed.Pipeline.open("shapes") as pipe:
        request = replace(REQUEST, sampler="dpmpp_sde", noise="torch-cuda")
        schedules = []
        trajectory = pipeline.trajectory

        def watched(schedule: ed.Schedule, *rest: Any, **more: Any) -> Any:
            schedules.append(schedule)
            return trajectory(schedule, *rest, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "trajectory", watched)
            pipe.generate(request)
    assert schedules[0].options["noise_sampler_kind"] == "torch-cuda"
