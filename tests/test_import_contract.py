"""What an import may load: the runtime never sees torch, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNTIME = ROOT / "runtime" / "edgediffusion"
BANNED = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "scipy",
    "edgediffusion_export",
)

# Third-party packages that ``import edgediffusion`` itself may load. Everything else (engines,
# Pillow, tokenizers, typer, rich, ...) waits until it is needed.
LIGHT = {"edgediffusion", "msgspec", "numpy"}
MAY_BE_THERE = {"typing_extensions"}  # msgspec takes it where it is installed

_REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {banned!r}:
            raise ImportError("the runtime must not import " + name)
sys.meta_path.insert(0, Refuse())
import {module}
"""
_LIST = """
import sys
before = set(sys.modules)
import edgediffusion
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(loaded - sys.stdlib_module_names))
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    return subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False
    )


def test_no_module_of_the_runtime_imports_what_is_banned() -> None:
    modules = [f"edgediffusion.{path.stem}" for path in sorted(RUNTIME.glob("*.py"))]
    imports = ", ".join(module.removesuffix(".__init__") for module in modules)
    done = python(_REFUSE.format(banned=BANNED, module=imports))
    assert done.returncode == 0, done.stderr


def test_the_guard_catches_a_banned_import() -> None:
    done = python(_REFUSE.format(banned=BANNED, module="torch"))
    assert "the runtime must not import torch" in done.stderr


def test_importing_loads_a_closed_list_of_packages() -> None:
    done = python(_LIST)
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if not name.startswith("_")}
    assert loaded - MAY_BE_THERE == LIGHT


def test_generating_loads_nothing_that_is_banned_and_opens_no_socket(tmp_path: Path) -> None:
    done = python(f"""
import socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from edgediffusion.cli import main
words = ["generate", "a red circle", "--steps", "2", "--device", "cpu"]
code = main([*words, "-o", {str(tmp_path / "a.png")!r}])
assert code == 0, code
loaded = set(sys.modules) & set({BANNED!r}) - {{"edgediffusion_export"}}
assert not loaded, loaded
""")
    assert done.returncode == 0, done.stderr


def test_samplers_know_neither_engines_nor_manifests() -> None:
    done = python("""
import sys, types
package = types.ModuleType("edgediffusion")
package.__path__ = [path + "/edgediffusion" for path in sys.path]
sys.modules["edgediffusion"] = package
import edgediffusion.samplers
print(*sorted(name for name in sys.modules if name.startswith("edgediffusion.")))
""")
    assert done.returncode == 0, done.stderr
    assert not {"engine", "manifest", "bundle", "pipeline"} & {
        name.removeprefix("edgediffusion.") for name in done.stdout.split()
    }
