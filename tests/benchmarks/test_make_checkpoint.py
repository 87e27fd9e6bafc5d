import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from rich.console import Console
from safetensors import safe_open
from typer import Typer
from typer.testing import CliRunner

from benchmarks.checkpoints import (
    Model,
    build_vocabulary,
    byte_symbols,
    model_index,
    read_merges,
    replacing_folder,
    tensor_shapes,
)
from benchmarks.make_checkpoint import ARCHITECTURES, CLIP_VOCABULARY, find_merges, main
from tests.checkpoints import (
    TINY_TEXT_ENCODER,
    SchedulerName,
    break_config,
    keep_only_pickles,
    remove_component,
    write_tiny_checkpoint,
)

PROMPT = "a red circle above a blue square"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", tiny_vae=True)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encode(pipeline: StableDiffusionPipeline, prompt: str) -> torch.Tensor:
    tokens = pipeline.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        states: torch.Tensor = pipeline.text_encoder(tokens.input_ids).last_hidden_state
    return states


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_the_tiny_checkpoint_makes_a_lively_picture(
    tmp_path: Path, scheduler: SchedulerName
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny", scheduler=scheduler)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline(PROMPT, num_inference_steps=2, generator=generator, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
    assert type(pipeline.scheduler).__name__.lower() == f"{scheduler}scheduler"
    assert picture.std() > 0.05  # of [0, 1]
    assert np.mean((picture == 0) | (picture == 1)) < 0.1


def test_twenty_steps_stay_near_the_scale_of_trained_latents(
    pipeline: StableDiffusionPipeline,
) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = pipeline(
        PROMPT, num_inference_steps=20, generator=generator, output_type="latent"
    ).images
    assert 0.5 < latents.std() < 12


def test_the_unet_hears_sample_timestep_and_text(pipeline: StableDiffusionPipeline) -> None:
    x, other = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = encode(pipeline, PROMPT)

    @torch.no_grad()
    def predict(x: torch.Tensor, t: int, text: torch.Tensor) -> torch.Tensor:
        sample: torch.Tensor = pipeline.unet(x, torch.tensor([t]), text).sample
        return sample

    prediction = predict(x, 981, text)
    assert 0.5 < prediction.std() < 2
    assert difference(prediction, predict(other, 981, text)) > 0.5
    assert difference(prediction, predict(x, 1, text)) > 0.1
    assert difference(prediction, predict(x, 981, encode(pipeline, "green"))) > 0.1
    assert torch.corrcoef(torch.stack([prediction.flatten(), x.flatten()]))[0, 1] > 0.5


def test_text_states_differ_between_prompts(pipeline: StableDiffusionPipeline) -> None:
    red, blue = encode(pipeline, "red"), encode(pipeline, "blue")
    assert 0.5 < red.std() < 2
    assert difference(red, blue) > 0.1


def test_the_text_encoder_gets_its_weights_from_the_file(
    checkpoint: Path, pipeline: StableDiffusionPipeline
) -> None:
    # transformers fills tensors that it does not find with random numbers, without an error
    with safe_open(checkpoint / "text_encoder/model.safetensors", "pt") as weights:
        names = list(weights.keys())
        stored = {name.removeprefix("text_model."): weights.get_tensor(name) for name in names}
    assert all(name.startswith("text_model.") for name in names)  # as published checkpoints do
    state = pipeline.text_encoder.state_dict()
    loaded = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)


def test_the_vae_encodes_to_unit_scale(pipeline: StableDiffusionPipeline) -> None:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(picture).latent_dist
    assert latents.mean.shape == (1, 4, 8, 8)
    assert 0.3 < latents.mean.std() < 3


def test_the_tiny_vae_decodes_a_lively_picture(checkpoint: Path) -> None:
    vae = AutoencoderTiny.from_pretrained(checkpoint / "vae_tiny")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        picture = vae.decode(latents).sample
    assert picture.shape == (1, 3, 64, 64)
    assert picture.std() > 0.1
    assert (picture.abs() > 1).float().mean() < 0.2


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, checkpoint: Path) -> None:
    again = write_tiny_checkpoint(tmp_path / "again", tiny_vae=True)
    other = write_tiny_checkpoint(tmp_path / "other", tiny_vae=True, seed=1)
    assert hashes(again) == hashes(checkpoint)
    changed = {name for name, digest in hashes(other).items() if hashes(again)[name] != digest}
    assert {Path(name).suffix for name in changed} == {".safetensors"}
    assert len(changed) == 4


@pytest.mark.parametrize(
    ("architecture", "name"),
    [(each, name) for each, whole in ARCHITECTURES.items() for name in whole.models],
)
def test_full_size_networks_have_the_published_number_of_parameters(
    architecture: str, name: str
) -> None:
    model = ARCHITECTURES[architecture].models[name]
    assert model.parameters is not None
    assert tensor_shapes(model)  # raises where the count differs


def test_sd15_names_its_parts() -> None:
    index = model_index(ARCHITECTURES["sd15"])
    assert index["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert index["safety_checker"] == [None, None]


def test_another_number_of_parameters_is_an_error() -> None:
    wrong = Model(
        library="transformers",
        class_name="CLIPTextModel",
        config=TINY_TEXT_ENCODER.config,
        parameters=7,
    )
    with pytest.raises(ValueError, match=r"CLIPTextModel: got [\d,]+ parameters, expected 7\."):
        tensor_shapes(wrong)


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    before = hashes(folder)
    with pytest.raises(FileExistsError, match=r"tiny exists already.*pass --force to replace it"):
        write_tiny_checkpoint(folder, seed=1)
    assert hashes(folder) == before
    assert hashes(write_tiny_checkpoint(folder, seed=1, force=True)) != before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def fail_half_way(target: Path) -> None:
    with replacing_folder(target, force=True) as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise RuntimeError("disk full")


def test_a_failure_leaves_the_old_folder_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way(target)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "target",
        "target/old",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sd15", "-o", "{folder}"], "exists already"),
        (["sd99", "-o", "{folder}/new"], "unknown architecture 'sd99': did you mean sd"),
        (["flux", "-o", "{folder}/new"], "'flux': known: sd15, sd21, sd21-base, sdxl"),
    ],
)
def test_the_command_names_what_is_wrong(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    app = Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [text.format(folder=tmp_path) for text in arguments])
    assert result.exit_code != 0
    assert message in " ".join(re.sub(r"[│\s]+", " ", result.output).split())


def test_byte_symbols_are_distinct_and_visible() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert not any(symbol.isspace() for symbol in symbols)


def test_a_stand_in_vocabulary_has_the_size_and_the_special_tokens() -> None:
    vocabulary = build_vocabulary([], 49408)
    assert len(vocabulary) == 49408
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407


def test_a_missing_vocabulary_is_said_aloud(tmp_path: Path) -> None:
    console = Console(record=True)
    assert find_merges(tmp_path / "absent.gz", console) == []
    assert "byte-level stand-in of the same size" in console.export_text()


@pytest.mark.skipif(not CLIP_VOCABULARY.is_file(), reason="CLIP's vocabulary is not at hand")
def test_the_real_vocabulary_has_clips_numbers() -> None:
    # openai/clip-vit-large-patch14, tokenizer/vocab.json
    vocabulary = build_vocabulary(read_merges(CLIP_VOCABULARY), 49408)
    assert len(vocabulary) == 49408
    assert {word: vocabulary[f"{word}</w>"] for word in ("a", "cat", "photo", "of")} == {
        "a": 320,
        "cat": 2368,
        "photo": 1125,
        "of": 539,
    }


def test_tokens_are_merged_and_padded(pipeline: StableDiffusionPipeline) -> None:
    vocabulary = pipeline.tokenizer.get_vocab()
    tokens = pipeline.tokenizer("red", padding="max_length", max_length=77).input_ids
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    assert tokens == [start, vocabulary["red</w>"], *[end] * 75]


def test_faults_leave_what_their_names_say(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    keep_only_pickles(folder, "unet")
    keep_only_pickles(folder, "text_encoder")
    remove_component(folder, "vae")
    break_config(folder, "scheduler")
    assert not list(folder.glob("unet/*.safetensors"))
    assert (folder / "unet/diffusion_pytorch_model.bin").is_file()
    assert (folder / "text_encoder/pytorch_model.bin").is_file()
    assert not (folder / "vae").exists()
    text = (folder / "scheduler/scheduler_config.json").read_text(encoding="utf-8")
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
