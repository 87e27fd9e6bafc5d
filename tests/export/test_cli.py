from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from edgediffusion.errors import CheckpointError, EdgeDiffusionError
from edgediffusion_export import cli, exporter
from edgediffusion_export.options import ExportOptions
from tests.checkpoints import keep_only_pickles


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command("export")(cli.export)
    made.command("other")(lambda: None)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> list[ExportOptions]:
    """The options that reach the exporter, which is not run."""
    seen: list[ExportOptions] = []

    def export(options: ExportOptions, progress: Any) -> Path:
        seen.append(options)
        progress("working", 1, 2)
        return tiny_bundle

    monkeypatch.setattr(exporter, "export_checkpoint", export)
    return seen


def test_defaults(app: typer.Typer, asked: list[ExportOptions]) -> None:
    result = CliRunner().invoke(app, ["export", "ckpt", "-o", "out"])
    assert result.exit_code == 0, result.output
    assert asked == [ExportOptions(checkpoint="ckpt", output=Path("out"))]


def test_every_option_arrives(app: typer.Typer, asked: list[ExportOptions]) -> None:
    words = (
        "export org/name -o out --size 64x128 --size 512 --batch 1 --batch 4 --precision fp16 "
        "--chunks 3 --no-rewrites "
        "--store source --target cpu --target tensorrt-rtx --compute-capability 8.9 "
        "--name n --license MIT --revision main --steps 8 --guidance 1.5 --sampler unipc --force"
    )
    result = CliRunner().invoke(app, words.split())
    assert result.exit_code == 0, result.output
    assert asked == [
        ExportOptions(
            checkpoint="org/name",
            output=Path("out"),
            sizes=((64, 128), (512, 512)),
            batches=(1, 4),
            chunks=3,
            rewrites=(),
            precision="fp16",
            store="source",
            targets=("cpu", "tensorrt-rtx"),
            compute_capabilities=("8.9",),
            name="n",
            license="MIT",
            revision="main",
            steps=8,
            guidance=1.5,
            sampler="unipc",
            force=True,
        )
    ]


def test_the_command_of_the_docs_is_one(app: typer.Typer, asked: list[ExportOptions]) -> None:
    page = Path(__file__).parents[2] / "docs" / "tensorrt.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    (command,) = [line for line in lines if line.startswith("edgediffusion export ")]
    result = CliRunner().invoke(app, command.split()[1:])
    assert result.exit_code == 0, result.output
    (options,) = asked
    assert (options.precision, options.targets) == ("fp16", ("tensorrt-rtx",))


def test_the_summary_names_what_was_made(tiny_bundle: Path) -> None:
    written = StringIO()
    cli.print_summary(tiny_bundle, 12.3, Console(width=200, file=written))
    text = written.getvalue()
    for graph in ("text_encoder/b1.onnx", "unet/64x64.b2.onnx", "vae_tiny_decoder/64x64.b1.onnx"):
        assert graph in text
    assert "MiB, licence unknown, 12 s" in text


@pytest.mark.parametrize("name", ["torch", "onnxscript"])
def test_a_missing_extra_names_the_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(wanted: str) -> ModuleSpec | None:
        return None if wanted == name else importlib.util.find_spec(wanted)

    monkeypatch.setattr(cli, "find_spec", find)
    with pytest.raises(
        CheckpointError, match=rf"needs {name}, which is not .*pip install edgediffusion\[export\]"
    ):
        cli.require_packages()


def test_importing_the_command_loads_no_torch() -> None:
    code = (
        "import sys, edgediffusion_export.cli\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'diffusers', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "61x64"], "the nearest are 48x64 or 64x64"),
        (["--size", "big"], "size 'big' is not HEIGHTxWIDTH"),
        (["--precision", "int4"], "unknown precision 'int4'"),
        (["--target", "cuda12"], "unknown target 'cuda12': did you mean cuda?"),
        (["--precision", "int8"], "precision int8 needs prompts to calibrate with"),
        (["--calibrate", "prompts.txt"], "calibration is for --precision int8 only"),
        (["--reduce-range"], "a reduced range is for int8 weights"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--chunks", "0"], "chunks must be from 1 to 16, got 0"),
    ],
)
def test_bad_requests_are_errors(
    app: typer.Typer, checkpoint: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["export", str(checkpoint), "-o", str(tmp_path / "b"), *words])
    assert isinstance(result.exception, EdgeDiffusionError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_prints_no_traceback(broken: Path, tmp_path: Path) -> None:
    """The whole way, in a process of its own."""
    keep_only_pickles(broken, "vae")
    code = (
        "import sys; from edgediffusion.cli import app, main\n"
        "from edgediffusion_export import cli\n"
        "app.command('export')(cli.export); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(broken), "-o", str(tmp_path / "b")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "error:" in done.stderr
    assert "is a pickle" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "b").exists()
