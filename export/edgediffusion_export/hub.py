"""Fetch a checkpoint from the Hugging Face hub: configurations and safetensors, nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgediffusion.errors import CheckpointError
from edgediffusion.manifest import TEXT_ENCODERS

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NETWORKS: Final = ("unet", "vae", *TEXT_ENCODERS, "vae_tiny")
FILES: Final = (
    "model_index.json",
    "README.md",
    "LICENSE*",
    "scheduler/*.json",
    "tokenizer/*",
    "tokenizer_2/*",
    *(f"{network}/*.{ending}" for network in _NETWORKS for ending in ("json", "safetensors")),
)


def download(name: str, revision: str | None) -> Path:
    """Return the folder of a hub id's snapshot, named by its commit. Raises CheckpointError."""
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"there is no checkpoint at {name}: expected a folder, or a hub id like ORG/NAME"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"there is no folder {name}, and it could not be fetched from the Hugging Face hub "
            f"({first}): check the name and the network, or download it elsewhere and pass the "
            "folder"
        ) from error
