"""What all results files have in common: who measured what, where, at which commit."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from edgediffusion.bundle import Bundle
from edgediffusion.errors import EdgeDiffusionError, OutputError, RequestError, choices
from edgediffusion.files import write_atomically
from edgediffusion.machine import machine_facts

ROOT: Final = Path(__file__).resolve().parents[1]

Report = dict[str, Any]


def head(schema: str) -> Report:
    """The beginning of every report: its schema, and what makes the run repeatable."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return {
        "schema": schema,
        "command": shlex.join(["python", name, *sys.argv[1:]]),
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine_facts(),
    }


def bundle_facts(bundle: Bundle) -> Report:
    """What a report says of the bundle that was measured."""
    return {"bundle": {"name": bundle.manifest.name, "sha256": bundle.sha256}}


def commit() -> str | None:
    """The commit of this checkout, with ``+`` where files differ from it; None without git."""
    found = _git("rev-parse", "HEAD")
    return found and found + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all; raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error}") from error


def read_report(path: Path, schemas: Iterable[str]) -> Report:
    """Read a report of one of ``schemas``; raises RequestError."""
    known = tuple(schemas)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RequestError(f"{path} is not a JSON file: {error}") from error
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema not in known:
        raise RequestError(f"{path} has schema {schema!r}, {choices(str(schema), known)}")
    return report  # type: ignore[no-any-return]


@contextmanager
def said_errors() -> Iterator[None]:
    """Turn a command's errors into a line on stderr and exit code 2; for use as a decorator."""
    try:
        yield
    except EdgeDiffusionError as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"error: {escape(str(error))}")
        raise typer.Exit(2) from error


def markdown(columns: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a Markdown table, numbers to the right."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, rule, *rows))
