from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from edgediffusion.errors import CheckpointError
from edgediffusion_export.source import open_checkpoint


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder", "a/b/c", "org/", "../x", ""])
def test_only_ids_are_fetched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _unexpected)
    message = "there is no checkpoint at|is not a diffusers checkpoint"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(name)


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no way\nout"), ConnectionError("no way"), OSError("no way")]
)
def test_without_a_network_the_fix_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        CheckpointError,
        match=r"no folder org/name, and it could not be fetched .*\(no way\): check the name and",
    ):
        open_checkpoint("org/name")


def test_a_snapshot_is_named_by_its_id_and_commit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "0123abcd"
    snapshot.symlink_to(checkpoint)
    asked: list[Any] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    found = open_checkpoint("org/name", "main")
    assert (found.name, found.revision) == ("org/name", "0123abcd")
    ((name, revision, patterns),) = asked
    assert (name, revision) == ("org/name", "main")
    assert not any(pattern.endswith((".bin", ".ckpt", "*")) for pattern in patterns
                   if not pattern.startswith(("tokenizer", "LICENSE")))  # fmt: skip


def _unexpected(*_: Any, **__: Any) -> str:
    raise AssertionError("nothing may be fetched")
