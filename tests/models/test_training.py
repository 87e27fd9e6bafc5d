import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import train  # noqa: E402
from loop import Budget, load  # noqa: E402
from networks import MICRO, count, make_tokenizer, make_unet  # noqa: E402
from scenes import full_caption, scenes  # noqa: E402
from train import Settings, answers, encode_all, run, standardise, vae_stage  # noqa: E402

CHECKPOINT = Path(train.__file__).parent / "checkpoint"
STAGES = ("vae", "text", "unet", "decoder", "tiny")


def micro(folder: Path) -> Settings:
    return Settings(folder=folder, sizes=MICRO, pictures=24, checks=2)


def test_any_string_tokenizes_and_caption_words_are_whole(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    for scene in scenes(0, 0, 50):
        text = str(full_caption(scene))
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 2
        assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    every_byte = [chr(i) for i in range(256)] + ["日本", "🙂", "\ud7ff", "naïve ☃"]
    for text in every_byte:
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert len(ids) == 77
        inner = [i for i in ids[1:] if i != tokenizer.eos_token_id]
        assert inner or not text.isprintable() or not text.strip()
    symbols = set(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    assert len([s for s in symbols if len(s) == 1]) == 256


def test_answers_see_through_the_order_of_the_words():
    scene = next(s for s in scenes(0, 0, 50) if s.relation)
    caption = full_caption(scene)
    mirrored = train.Caption(
        caption.claims[::-1], train.INVERSE[caption.relation], caption.background
    )
    assert answers(caption)[6:18] == answers(mirrored)[6:18]
    assert answers(None) == [0] * 20


def test_standardised_latents_decode_to_the_same_picture(tmp_path):
    settings = micro(tmp_path)
    torch.manual_seed(0)
    vae = train.make_vae(MICRO).eval()
    raw = encode_all(settings, vae)
    with torch.no_grad():
        before = vae.decode(raw[:2]).sample
        latents = standardise(vae, raw)
        after = vae.decode(latents[:2]).sample
        pictures = train.to_tensor(train.np.stack([train.render(next(scenes(0, 0, 1)))]), "cpu")
        again = vae.encode(pictures).latent_dist.mean
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-3)
    assert (again[0] - latents[0]).norm() < 1e-2 * latents[0].norm()
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    def finish(folder, stop_after=None):
        torch.manual_seed(0)
        vae = train.make_vae(MICRO)
        stage = vae_stage(micro(folder), vae, Budget(steps=4), batch=1)
        try:
            train.train(stage, folder, stop_after=stop_after)
        except KeyboardInterrupt:
            torch.manual_seed(99)
            stage = vae_stage(micro(folder), train.make_vae(MICRO), Budget(steps=4), batch=1)
            train.train(stage, folder)
        return stage.networks.state_dict()

    whole, broken = finish(tmp_path / "a"), finish(tmp_path / "b", stop_after=2)
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name


def test_all_stages_end_in_a_pipeline(tmp_path):
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    from safetensors.torch import load_file

    out = tmp_path / "checkpoint"
    budgets = {name: Budget(steps=2) for name in STAGES}
    run(micro(tmp_path / "state"), budgets, out)
    before = load(tmp_path / "state" / "unet.pt")
    run(micro(tmp_path / "state"), budgets, out)  # everything is done: nothing is trained again
    after = load(tmp_path / "state" / "unet.pt")
    assert all(torch.equal(a, b) for a, b in zip(before["average"], after["average"], strict=True))

    index = json.loads((out / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    for file in out.rglob("*.safetensors"):
        assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    AutoencoderTiny.from_pretrained(out / "vae_tiny")
    pipe = StableDiffusionPipeline.from_pretrained(out)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.float()
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 128, "width": 128, "num_inference_steps": 2, "output_type": "np"}
    assert pipe("a red circle", **options).images.shape == (1, 128, 128, 3)


def test_a_state_of_other_sizes_is_not_taken(tmp_path):
    with pytest.raises(RuntimeError):
        make_unet(MICRO).load_state_dict(make_unet(train.Sizes()).state_dict())


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="no committed checkpoint")
def test_the_committed_checkpoint_is_small_enough():
    from safetensors import safe_open

    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    total = 0
    for path in CHECKPOINT.rglob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                assert torch.isfinite(tensor).all(), name
                total += tensor.numel()
    assert count() < total <= 7_000_000
    assert (CHECKPOINT / "vae_tiny" / "config.json").exists()


def test_the_text_encoders_tensors_have_their_published_names():
    """Versions of transformers before 5.23 take others for missing ones, and go on."""
    from safetensors import safe_open

    with safe_open(CHECKPOINT / "text_encoder" / "model.safetensors", "pt") as tensors:
        assert all(name.startswith("text_model.") for name in tensors.keys())  # noqa: SIM118
