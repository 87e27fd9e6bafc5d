"""A checkpoint on disk: diffusers' folder layout to torch modules, configurations and hashes.

This is the only module that knows diffusers and transformers. It reads safetensors and JSON;
pickles are refused, because loading one runs the code in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgediffusion.errors import CheckpointError, ScheduleError
from edgediffusion.hashing import sha256_file
from edgediffusion.manifest import (
    STABLE_DIFFUSION,
    TEXT_ENCODERS,
    XL,
    Family,
    Precision,
    Source,
    tokenizer_name,
)
from edgediffusion.options import read_config
from edgediffusion_export.architecture import Architecture, Config, read_architecture
from edgediffusion_export.hub import download
from edgediffusion_export.license import find_license

if TYPE_CHECKING:
    import torch

TOKENIZERS: Final = ("CLIPTokenizer", "CLIPTokenizerFast")
PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: its class, and its files in the folder of its name.

    ``variant`` is the infix of the weights' file names (``model.fp16.safetensors``), if any.
    """

    folder: Path
    class_name: str
    config: Config
    weights: tuple[Path, ...]
    variant: str | None
    dtype: Precision


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found and whose configurations were read.

    zero_empty_negative : an empty negative prompt is to be all zeros, says model_index.json.
    """

    family: Family
    folder: Path
    name: str
    revision: str | None
    parts: Mapping[str, Part]
    scheduler: dict[str, Any]
    architecture: Architecture
    license: str
    zero_empty_negative: bool

    def source(self) -> Source:
        """Hash the weights and say where the checkpoint came from."""
        files = sorted(path for part in self.parts.values() for path in part.weights)
        hashes = {p.relative_to(self.folder).as_posix(): sha256_file(p) for p in files}
        return Source(self.name, self.revision, hashes)

    def tensor_names(self, part: str, parameters: Iterable[str]) -> dict[str, str]:
        """The names that the weights files give to a network's parameters.

        transformers drops a prefix (``text_model.``) that the files have.
        """
        files = self.parts[part].weights
        stored = {name for path in files for name in _open_weights(path)}
        names = {}
        for parameter in parameters:
            longer = [name for name in stored if name.endswith(f".{parameter}")]
            known = parameter in stored or len(longer) != 1
            names[parameter] = parameter if known else longer[0]
        return names

    def load(self, part: str) -> torch.nn.Module:
        """Load a network in float32, for inference. Raises CheckpointError."""
        return _load(self.parts[part])


CLASSES: Final[Mapping[str, str]] = {
    "text_encoder": "CLIPTextModel",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "vae_tiny": "AutoencoderTiny",
}
OPTIONAL: Final = ("vae_tiny",)
PIPELINES: Final[Mapping[str, tuple[Family, Mapping[str, str]]]] = {
    "StableDiffusionPipeline": (STABLE_DIFFUSION, CLASSES),
    "StableDiffusionXLPipeline": (XL, {**CLASSES, "text_encoder_2": "CLIPTextModelWithProjection"}),
}
"""The family and the networks of each kind of checkpoint."""


def open_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or fetch a hub id, and read everything but the weights."""
    folder = Path(name)
    if not folder.exists():
        folder = download(name, revision)
        revision = folder.name
    elif revision is not None:
        raise CheckpointError(
            f"revision {revision!r} makes sense for hub ids only, {name} is a folder: leave it out"
        )
    _check_layout(folder)
    index = _read_json(folder / "model_index.json")
    family, classes = _kind_of(index, folder / "model_index.json")
    parts = {
        part: _read_part(folder, part, class_name)
        for part, class_name in classes.items()
        if part not in OPTIONAL or (folder / part).is_dir()
    }
    scheduler = _read_scheduler(_present(folder, "scheduler") / "scheduler_config.json")
    for encoder in TEXT_ENCODERS:
        if encoder in classes:
            _check_tokenizer(_present(folder, tokenizer_name(encoder)), index)
    architecture = read_architecture({name: p.config for name, p in parts.items()}, scheduler)
    return Checkpoint(
        family=family,
        folder=folder,
        name=folder.resolve().name if Path(name).exists() else name,
        revision=revision,
        parts=parts,
        scheduler=scheduler,
        architecture=architecture,
        license=find_license(folder, index),
        zero_empty_negative=family == XL and index.get("force_zeros_for_empty_prompt", True),
    )


def _kind_of(index: Config, path: Path) -> tuple[Family, Mapping[str, str]]:
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        raise CheckpointError(
            f"{path} describes a {name}, only {' and '.join(PIPELINES)} checkpoints are supported"
        )
    return PIPELINES[name]


def _check_layout(folder: Path) -> None:
    if folder.is_file():
        fix = (
            "it is a pickle or a single-file checkpoint"
            if folder.suffix in (*PICKLES, ".safetensors")
            else "it is a file"
        )
        raise CheckpointError(
            f"{folder} cannot be exported: {fix}. Convert it to a diffusers folder first, in an "
            "environment that you trust: StableDiffusionPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER, safe_serialization=True)"
        )
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(
            f"{folder} is not a diffusers checkpoint: it has no model_index.json. Expected a "
            f"folder with model_index.json, {', '.join(p for p in CLASSES if p not in OPTIONAL)}, "
            "tokenizer and scheduler"
        )


def _present(folder: Path, part: str) -> Path:
    if not (folder / part).is_dir():
        raise CheckpointError(
            f"{folder} has no folder {part}/, which model_index.json needs: the checkpoint is "
            "incomplete, copy or download it again"
        )
    return folder / part


def _read_scheduler(path: Path) -> dict[str, Any]:
    """Read a scheduler's configuration, which the runtime must understand."""
    scheduler = _read_json(path)
    try:
        read_config(scheduler, None, {})
    except ScheduleError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return scheduler


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: the checkpoint is incomplete, copy or download it again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}): the file is damaged, copy or download it again"
        ) from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def _read_part(folder: Path, part: str, class_name: str) -> Part:
    at = _present(folder, part)
    config = _read_json(at / "config.json")
    architectures = config.get("architectures") or [None]
    found = config.get("_class_name") or architectures[0]
    if found != class_name:
        raise CheckpointError(
            f"{at / 'config.json'} describes a {found}, expected a {class_name}: this kind of "
            "network is not supported"
        )
    weights, variant = _find_weights(at)
    return Part(at, class_name, config, weights, variant, _dtype_of(weights))


def _find_weights(folder: Path) -> tuple[tuple[Path, ...], str | None]:
    """The weights files of a network, whole or in shards, and the variant that they are of."""
    groups: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        stem = re.sub(r"-\d+-of-\d+", "", path.name.removesuffix(".safetensors"))
        groups.setdefault(stem.partition(".")[2] or None, []).append(path)
    if groups:
        variant = None if None in groups else sorted(v for v in groups if v)[0]
        return tuple(groups[variant]), variant
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run any code when it is loaded: refused. Convert "
            "it to safetensors first, in an environment that you trust: load the checkpoint with "
            "diffusers and call save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise CheckpointError(
        f"{folder} has no .safetensors file: the checkpoint is incomplete, copy or download it "
        "again"
    )


def _open_weights(path: Path) -> dict[str, str]:
    """The names and dtypes of the tensors of a safetensors file, from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): it is truncated or damaged, "
            "copy or download it again"
        ) from None


def _dtype_of(weights: tuple[Path, ...]) -> Precision:
    """The storage precision of a network; bfloat16 counts as fp32, which holds it exactly."""
    kinds = {kind for path in weights for kind in _open_weights(path).values()}
    return "fp16" if "F16" in kinds and not kinds & {"F32", "F64", "BF16"} else "fp32"


def _check_tokenizer(folder: Path, index: Config) -> None:
    entry = index.get(folder.name)
    kind = entry[-1] if isinstance(entry, list) and entry else None
    if kind not in TOKENIZERS:
        raise CheckpointError(
            f"{folder.parent / 'model_index.json'} names the {folder.name} {kind!r}, expected "
            f"{' or '.join(TOKENIZERS)}: other tokenizers are not supported"
        )
    has_vocabulary = all((folder / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not has_vocabulary and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: the checkpoint "
            "is incomplete, copy or download it again"
        )


def _load(part: Part) -> torch.nn.Module:
    import torch

    from edgediffusion_export.quiet import quiet_loading

    with quiet_loading():
        loader, dtype = _loader(part.class_name)
        try:
            module, info = loader(
                part.folder,
                **{dtype: torch.float32},
                use_safetensors=True,
                local_files_only=True,
                variant=part.variant,
                output_loading_info=True,
            )
        except Exception as error:  # the two libraries raise whatever their layers raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{part.folder} does not load as a {part.class_name} ({first}): weights and "
                "config.json do not belong together, copy or download the checkpoint again"
            ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{part.folder} lacks the weights of {len(missing)} parameters, the first is "
            f"{missing[0]}: weights and config.json do not belong together, copy or download the "
            "checkpoint again"
        )
    loaded: torch.nn.Module = module.eval().requires_grad_(False)
    return loaded


def _loader(class_name: str) -> tuple[Callable[..., Any], str]:
    """``from_pretrained`` of a class, and what its library calls the dtype."""
    if class_name.startswith("CLIPTextModel"):
        import transformers

        return getattr(transformers, class_name).from_pretrained, "dtype"
    import diffusers

    return getattr(diffusers, class_name).from_pretrained, "torch_dtype"


def load_tokenizer(folder: Path) -> Any:
    """Load a CLIP tokenizer's folder as transformers does. Raises CheckpointError."""
    from transformers import CLIPTokenizer

    from edgediffusion_export.quiet import quiet_loading

    with quiet_loading():
        try:
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(
                f"{folder} does not load as a CLIP tokenizer ({first}): the files are damaged, "
                "copy or download the checkpoint again"
            ) from error
