"""Checkpoints with the true shapes and seeded random weights, in the diffusers folder layout.

The mechanism only: an `Architecture` (data) goes in, a folder comes out. `make_checkpoint.py` holds
the full-size architectures, `tests/checkpoints.py` the tiny one.

The weights are random but lively. A network with PyTorch's default initialisation loses its signal
on the way (every layer halves it), so wrong constants, swapped inputs and lost precision would
hide in an output that is nearly constant. Here every layer keeps its input's variance (`GAINS`).
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

Config = Mapping[str, Any]
Merges = Sequence[tuple[str, str]]
Weights = dict[str, NDArray[np.float32]]
Advance = Callable[[int], None]

START_OF_TEXT: Final = "<|startoftext|>"
END_OF_TEXT: Final = "<|endoftext|>"
CLIP_VOCABULARY_SIZE: Final = 49408


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network of a pipeline: which class, with which config, how many parameters."""

    library: str  # "diffusers" or "transformers"
    class_name: str
    config: Config  # written to config.json verbatim
    parameters: int | None = None  # the known number, checked before anything is written
    prefix: str = ""  # before the names of the tensors on disk, where the class has none
    listed: bool = True  # named in model_index.json

    @property
    def weights_file(self) -> str:
        """The file name that from_pretrained looks for."""
        return f"{'diffusion_pytorch_' if self.library == 'diffusers' else ''}model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A whole pipeline: its networks by folder name, its scheduler, its tokenizers' padding."""

    pipeline: str
    version: str  # of diffusers, for model_index.json
    models: Mapping[str, Model]
    scheduler: Config
    tokenizers: Mapping[str, str] = field(default_factory=lambda: {"tokenizer": END_OF_TEXT})
    extra: Config = field(default_factory=dict)  # further entries of model_index.json


# --- networks and their random weights -----------------------------------------------------------

# SiLU halves a unit normal signal: E[silu(z)^2] = 0.356, and 1 / sqrt(0.356) = 1.68 restores it.
AFTER_SILU: Final = 1.68

# How much stronger than its input a layer's output is, by name, first match; 1 where none matches.
# A layer's weights have the standard deviation gain / sqrt(fan_in). Chosen by measuring SD 1.5's
# UNet at 512x512: an output of deviation 0.83, correlated 0.88 with the sample; timestep 1 instead
# of 981 changes it by 0.31 of its norm, another prompt by 0.14, computing in bf16 by about 0.01.
GAINS: Final[Sequence[tuple[str, float]]] = (
    (r"resnets\.\d+\.conv[12]\.", AFTER_SILU),
    # A timestep's sinusoids have the mean square 0.5; the rest makes it as loud as the picture.
    (r"time_embedding\.linear_1\.", 1.41),
    (r"time_embedding\.linear_2\.", AFTER_SILU),
    (r"time_emb_proj\.", 1.5 * AFTER_SILU),
    # SDXL adds an embedding of the pooled text and the picture's size to the timestep's.
    (r"add_embedding\.linear_2\.", 0.5 * AFTER_SILU),
    # A picture of standard deviation 0.4: well inside [-1, 1], far from flat.
    (r"^decoder\.conv_out\.", 0.4 * AFTER_SILU),
    # The UNet's own part of its prediction; the rest is an echo of its input (echo_the_sample).
    # Guidance multiplies the difference that the text makes: a trained network's is small.
    (r"^conv_out\.", 0.4 * AFTER_SILU),
    (r"conv_out\.", AFTER_SILU),
    # Softmax over 77 nearly equal scores averages the text away. Sharper scores (standard deviation
    # 2) and a stronger way out keep it; much sharper ones would magnify rounding errors.
    (r"attn2\.to_[qk]\.", 1.5),
    (r"attn2\.to_out\.", 2.0),
    # a * gelu(b) of two unit normals has the mean square 0.425.
    (r"ff\.net\.2\.", 1.5),
    (r"mlp\.fc2\.", 1.5),
    # AutoencoderTiny has ReLU and no norms: each residual block must add little.
    (r"coder\.layers\.\d+\.(conv\.[02]\.)?weight", 1.41),
    (r"layers\.\d+\.conv\.4\.", 0.5),
)


def skeleton(model: Model) -> torch.nn.Module:
    """Build the network on the meta device: names and shapes, no memory."""
    cls = getattr(importlib.import_module(model.library), model.class_name)
    with torch.device("meta"):
        if model.library == "diffusers":
            network = cls.from_config(dict(model.config))
        else:
            network = cls(cls.config_class(**model.config))
    assert isinstance(network, torch.nn.Module)
    return network


def count_parameters(network: torch.nn.Module) -> int:
    """Count the numbers that training would learn."""
    return sum(parameter.numel() for parameter in network.parameters())


def tensor_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what lies on disk, after checking the number of parameters."""
    network = skeleton(model)
    found = count_parameters(network)
    if model.parameters is not None and found != model.parameters:
        raise ValueError(
            f"{model.class_name}: got {found:,} parameters, expected {model.parameters:,}. "
            "The installed libraries build another network from this config; compare versions."
        )
    return {model.prefix + name: tuple(t.shape) for name, t in network.state_dict().items()}


def mean_and_std(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Say how the numbers of one tensor are distributed."""
    if name.endswith("bias"):
        return 0.0, 0.05
    if len(shape) == 1:  # the scale of a norm; not exactly 1, so that a lost scale shows
        return 1.0, 0.1
    if "token_embedding" in name:
        return 0.0, 1.0
    if "position_embedding" in name:
        return 0.0, 0.5
    gain = next((gain for pattern, gain in GAINS if re.search(pattern, name)), 1.0)
    return 0.0, gain / prod(shape[1:]) ** 0.5


def random_tensor(name: str, shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Draw one tensor; its numbers depend on the seed, its name and shape, on nothing else."""
    mean, std = mean_and_std(name, shape)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    values += np.float32(mean)
    return values


def echo_the_sample(weights: Weights) -> None:
    """Make a UNet's output resemble its input, as a trained prediction of the noise does.

    An unrelated prediction would be amplified by 1 / sqrt(alpha_bar), about 15, on the way from
    noise to picture. conv_in's output reaches the last resnet as a skip connection: an identity
    in that resnet's shortcut lets it pass, and conv_out reads it with the weights it was made with.
    """
    shortcut = weights[max(name for name in weights if "conv_shortcut" in name)]
    conv_in, conv_out = weights["conv_in.weight"], weights["conv_out.weight"]
    channels = len(conv_in)
    conv_in[..., 1, 1] *= 3.0  # otherwise the eight neighbours outshout the sample itself
    shortcut[:, -channels:, 0, 0] += 2.0 * np.eye(channels, dtype=np.float32)
    reading = conv_in[..., 1, 1].T
    conv_out[..., 1, 1] += ECHO * reading / (reading**2).sum(axis=1, keepdims=True)


def centre_the_picture(weights: Weights) -> None:
    """Put AutoencoderTiny's picture, which runs from 0 to 1 inside, round the middle grey."""
    last = max(weights, key=lambda name: int(name.split(".")[2]))
    weights[last] += np.float32(0.5)


# The echo's strength: together with the random part (GAINS) the output has a deviation near 1.
ECHO: Final = 4.0

# By class: which tensors are touched up (kept in fp32 until then), and how.
TOUCH_UP: Final[Mapping[str, tuple[str, Callable[[Weights], None]]]] = {
    "UNet2DConditionModel": (
        r"^conv_(in|out)\.weight|^up_.*conv_shortcut\.weight",
        echo_the_sample,
    ),
    "AutoencoderTiny": (r"^decoder\.layers\.\d+\.bias", centre_the_picture),
}


def random_weights(
    model: Model, seed: int, dtype: torch.dtype, advance: Advance
) -> dict[str, torch.Tensor]:
    """Draw all tensors of a network in the stored dtype."""
    pattern, touch_up = TOUCH_UP.get(model.class_name, (r"$^", lambda weights: None))
    stored: dict[str, torch.Tensor] = {}
    kept: Weights = {}
    for name, shape in tensor_shapes(model).items():
        values = random_tensor(name, shape, seed)
        advance(values.size)
        if re.search(pattern, name):
            kept[name] = values
        else:
            stored[name] = torch.from_numpy(values).to(dtype)
    touch_up(kept)
    return stored | {name: torch.from_numpy(values).to(dtype) for name, values in kept.items()}


# --- CLIP's tokenizer ----------------------------------------------------------------------------


def byte_symbols() -> list[str]:
    """Return one printable character per byte, in the order of CLIP's and GPT-2's vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(others)]


def read_merges(path: Path, size: int = CLIP_VOCABULARY_SIZE) -> Merges:
    """Read as many of OpenAI's merges as a vocabulary of this size has room for."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    wanted = size - 2 * 256 - 2  # bytes, bytes that end a word, two special tokens
    pairs = [line.split() for line in lines[1 : 1 + wanted]]  # line 0 is a header
    return [(left, right) for left, right in pairs]


def build_vocabulary(merges: Merges, size: int | None = None) -> dict[str, int]:
    """Number bytes, bytes at a word's end, merges, fillers up to the size, special tokens."""
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(left + right for left, right in merges)]
    fillers = 0 if size is None else size - len(tokens) - 2
    tokens += [f"<|unused{i}|>" for i in range(fillers)]
    return {token: i for i, token in enumerate([*tokens, START_OF_TEXT, END_OF_TEXT])}


def special_tokens(padding: str = END_OF_TEXT) -> dict[str, Any]:
    """Describe the special tokens as SD 1.5's files do, or with "!" for padding as SD 2.1's do."""

    def token(content: str) -> dict[str, Any]:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"content": content, **flags}

    return {
        "bos_token": token(START_OF_TEXT),
        "eos_token": token(END_OF_TEXT),
        "pad_token": padding,
        "unk_token": token(END_OF_TEXT),
    }


def write_tokenizer(
    folder: Path, merges: Merges, size: int | None = None, padding: str = END_OF_TEXT
) -> None:
    """Write the four files of a CLIP tokenizer, without tokenizer.json, like most checkpoints."""
    specials = special_tokens(padding)
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    typed = {
        key: {"__type": "AddedToken", **value} if isinstance(value, dict) else value
        for key, value in specials.items()
    }
    write_json(folder / "vocab.json", build_vocabulary(merges, size), indent=None)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    write_json(folder / "tokenizer_config.json", dict(sorted((config | typed).items())))
    write_json(folder / "special_tokens_map.json", specials)


# --- the folder ----------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with the same line ends everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Config, indent: int | None = 2) -> None:
    """Write JSON in the order given."""
    write_text(path, json.dumps(data, indent=indent) + "\n")


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file that others may read; the library's own is the owner's alone."""
    save_file(dict(weights), path, metadata={"format": "pt"})
    path.chmod(0o644)


def model_index(architecture: Architecture) -> dict[str, Any]:
    """Build model_index.json: which library and class reads which folder."""
    parts = {n: [m.library, m.class_name] for n, m in architecture.models.items() if m.listed}
    parts["scheduler"] = ["diffusers", architecture.scheduler["_class_name"]]
    parts |= {name: ["transformers", "CLIPTokenizer"] for name in architecture.tokenizers}
    header = {"_class_name": architecture.pipeline, "_diffusers_version": architecture.version}
    return header | dict(sorted((parts | dict(architecture.extra)).items()))


@contextmanager
def replacing_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside the target that takes its place if all goes well."""
    if target.exists() and not force:
        raise FileExistsError(
            f"{target} exists already. Choose another folder, or pass --force to replace it."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    retired = target.with_name(f".{target.name}.{os.getpid()}.old")
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(retired)
        try:
            temporary.rename(target)
        except OSError:
            if retired.exists():
                retired.rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(retired, ignore_errors=True)


def write_checkpoint(
    target: Path,
    architecture: Architecture,
    merges: Merges,
    *,
    vocabulary_size: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float16,
    force: bool = False,
    advance: Advance = lambda parameters: None,
) -> None:
    """Write a checkpoint, one network in memory at a time; `advance` hears of drawn parameters."""
    with replacing_folder(target, force=force) as folder:
        for name, model in architecture.models.items():
            write_json(folder / name / "config.json", model.config)
            weights = random_weights(model, seed, dtype, advance)
            save_weights(folder / name / model.weights_file, weights)
            del weights
        write_json(folder / "scheduler" / "scheduler_config.json", architecture.scheduler)
        for name, padding in architecture.tokenizers.items():
            write_tokenizer(folder / name, merges, vocabulary_size, padding)
        write_json(folder / "model_index.json", model_index(architecture))
