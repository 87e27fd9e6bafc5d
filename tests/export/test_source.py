from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgediffusion.errors import CheckpointError
from edgediffusion.hashing import sha256_file
from edgediffusion_export.source import open_checkpoint
from tests.checkpoints import break_config, keep_only_pickles, remove_component

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_checkpoint_is_read(checkpoint: Path) -> None:
    found = open_checkpoint(str(checkpoint))
    assert (found.name, found.revision, found.license) == ("tiny", None, "unknown")
    assert set(found.parts) == {"text_encoder", "unet", "vae", "vae_tiny"}
    assert found.scheduler == json.loads(
        (checkpoint / "scheduler" / "scheduler_config.json").read_text()
    )
    assert found.source().sha256[UNET_WEIGHTS] == sha256_file(checkpoint / UNET_WEIGHTS)


def test_weights_load_in_float32_for_inference(checkpoint: Path) -> None:
    module = open_checkpoint(str(checkpoint)).load("vae_tiny")
    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in module.parameters())


def test_parameters_get_the_names_of_the_files(checkpoint: Path) -> None:
    found = open_checkpoint(str(checkpoint))
    names = found.tensor_names("text_encoder", dict(found.load("text_encoder").named_parameters()))
    (weights,) = found.parts["text_encoder"].weights
    assert set(names.values()) == set(load_file(weights))


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float16, "fp16"), (torch.bfloat16, "fp32"), (torch.float32, "fp32")],
)
def test_the_precision_is_read_off_the_file(
    broken: Path, dtype: torch.dtype, precision: str
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(broken / UNET_WEIGHTS).items()}
    save_file(tensors, broken / UNET_WEIGHTS)
    assert open_checkpoint(str(broken)).parts["unet"].dtype == precision


def test_a_variant_is_used_where_there_is_nothing_else(broken: Path) -> None:
    path = broken / UNET_WEIGHTS
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    found = open_checkpoint(str(broken))
    assert found.parts["unet"].variant == "fp16"
    found.load("unet")


def test_sharded_weights_are_found(broken: Path) -> None:
    path = broken / UNET_WEIGHTS
    tensors = load_file(path)
    names = sorted(tensors)
    halves = {
        "diffusion_pytorch_model-00001-of-00002.safetensors": names[::2],
        "diffusion_pytorch_model-00002-of-00002.safetensors": names[1::2],
    }
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, path.with_name(file))
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index | {"metadata": {}}))
    path.unlink()
    found = open_checkpoint(str(broken))
    assert len(found.parts["unet"].weights) == 2
    found.load("unet")


def test_a_missing_component_is_named(broken: Path) -> None:
    remove_component(broken, "vae")
    with pytest.raises(CheckpointError, match=r"has no folder vae/.*incomplete, copy or download"):
        open_checkpoint(str(broken))


@pytest.mark.parametrize("component", ["unet", "scheduler"])
def test_a_broken_configuration_is_named(broken: Path, component: str) -> None:
    break_config(broken, component)
    with pytest.raises(CheckpointError, match=rf"{component}/\w*config.json is not valid JSON"):
        open_checkpoint(str(broken))


def test_a_configuration_must_be_an_object(broken: Path) -> None:
    (broken / "model_index.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="holds a list, expected a JSON object"):
        open_checkpoint(str(broken))


def test_a_missing_configuration_is_named(broken: Path) -> None:
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json is missing: the checkpoint is"):
        open_checkpoint(str(broken))


def test_an_unreadable_configuration_is_named(broken: Path) -> None:
    (broken / "vae" / "config.json").unlink()
    (broken / "vae" / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"vae/config\.json cannot be read: Is a directory"):
        open_checkpoint(str(broken))


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae_tiny"])
def test_pickles_are_refused(broken: Path, component: str) -> None:
    keep_only_pickles(broken, component)
    with pytest.raises(
        CheckpointError, match=r"model\.bin is a pickle.*refused.*safe_serialization=True"
    ):
        open_checkpoint(str(broken))


def test_missing_weights_are_named(broken: Path) -> None:
    (broken / UNET_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"unet has no \.safetensors file"):
        open_checkpoint(str(broken))


@pytest.mark.parametrize("keep", [0, 5, 4000, -1000])
def test_truncated_weights_are_named(broken: Path, keep: int) -> None:
    path = broken / UNET_WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=f"{UNET_WEIGHTS} is not a readable safetensors file"):
        open_checkpoint(str(broken))


def test_weights_of_another_network_are_named(broken: Path) -> None:
    save_file({"other": torch.zeros(3)}, broken / UNET_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks the weights of \d+ parameters, the first is"):
        open_checkpoint(str(broken)).load("unet")


def test_weights_of_another_shape_are_named(broken: Path) -> None:
    change_json(broken / "unet" / "config.json", block_out_channels=[16, 64])
    with pytest.raises(CheckpointError, match="unet does not load as a UNet2DConditionModel"):
        open_checkpoint(str(broken)).load("unet")


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "notes.txt"])
def test_single_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{name} cannot be exported: .*from_single_file"):
        open_checkpoint(str(tmp_path / name))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a diffusers checkpoint: it has no model_ind"):
        open_checkpoint(str(tmp_path))


def test_other_pipelines_are_refused(broken: Path) -> None:
    change_json(broken / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    with pytest.raises(CheckpointError, match="describes a StableDiffusionInpaintPipeline, only S"):
        open_checkpoint(str(broken))


def test_other_networks_are_refused(broken: Path) -> None:
    change_json(broken / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(CheckpointError, match="describes a VQModel, expected a AutoencoderKL"):
        open_checkpoint(str(broken))


def test_other_tokenizers_are_refused(broken: Path) -> None:
    change_json(broken / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])
    with pytest.raises(
        CheckpointError, match="names the tokenizer 'T5Tokenizer', expected CLIPTok"
    ):
        open_checkpoint(str(broken))


def test_a_tokenizer_needs_its_files(broken: Path) -> None:
    (broken / "tokenizer" / "merges.txt").unlink()
    (broken / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"has neither tokenizer\.json nor vocab\.json with"):
        open_checkpoint(str(broken))


def test_a_folder_has_no_revision(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="revision 'main' makes sense for hub ids only"):
        open_checkpoint(str(checkpoint), "main")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "RePaintScheduler"}, "_class_name: got 'RePaintScheduler', expected one"),
        ({"prediction_type": "flow"}, "prediction_type: got 'flow', but sampler"),
    ],
)
def test_a_scheduler_that_the_runtime_lacks(
    broken: Path, fields: dict[str, Any], message: str
) -> None:
    change_json(broken / "scheduler" / "scheduler_config.json", **fields)
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json: {message}"):
        open_checkpoint(str(broken))
