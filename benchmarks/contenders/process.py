"""The harness's end of the protocol: start a worker, ask it, give up on it in time."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 5.0  # for a worker to end by itself
QUOTED: Final = 300  # characters of a worker's words in a row of the report


class WorkerLost(Exception):
    """A worker crashed, hung or printed rubbish: it cannot be asked anything more."""


class Refused(Exception):
    """A worker answered that it could not do what it was asked for."""


# Variables that would change what a contender computes with, or let it reach for the network.
# A number of threads for OpenMP would bind PyTorch and leave ONNX Runtime all the cores.
UNSET: Final = (
    "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip
OFFLINE: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUTF8": "1",
}


def clean_environment() -> dict[str, str]:
    """The environment of every worker: this one, without what concerns this process only."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    return {**kept, **OFFLINE}


class Process:
    """A worker in a process of its own. Use it as a context manager.

    ``ask`` raises WorkerLost once the process is of no more use, Refused where it says no.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._patience_s = PATIENCE_S
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed in ``close``
        try:
            self._child = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env=clean_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the harness, which then ends its workers
            )
        except OSError as error:
            self._errors.close()
            raise WorkerLost(f"could not be started: {error}") from error
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin = self._child.stdin
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._child.stdout,), daemon=True).start()

    def ask(self, op: str, limit_s: float, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer, within so many seconds."""
        with suppress(OSError):  # it has gone; what it said before still waits to be read
            self._stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._stdin.flush()
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self._patience_s = 0.0  # it does not listen
            raise WorkerLost(f"hung: no answer to {op!r} within {limit_s:g} s") from None
        if line is None:
            self._lines.put(None)  # so it is for whoever asks again
            raise WorkerLost(f"{self._death()} while asked for {op!r}{self._last_words()}")
        answer = _read(line)
        if "error" in answer:
            raise Refused(str(answer["error"])[:QUOTED])
        return answer

    def close(self) -> None:
        """End the process and what it has started; closing twice is fine."""
        if self._errors.closed:
            return
        _end(self._child, self._patience_s)
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self, stdout: IO[str]) -> None:
        """Pass lines on; a blocking read with a time limit is not portable otherwise."""
        for line in stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _death(self) -> str:
        try:
            code = self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"ended with {signal_name(code) or f'exit code {code}'}"

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return f": {said[-1][:QUOTED]}" if said else ""


def signal_name(code: int) -> str | None:
    """The name of the signal in a negative exit code."""
    try:
        return signal.Signals(-code).name if code < 0 else None
    except ValueError:
        return f"signal {-code}"


def _read(line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except json.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise WorkerLost(f"printed rubbish instead of an answer: {line.strip()[:80]!r}")
    return answer


def _end(child: subprocess.Popen[str], patience_s: float) -> None:
    """Ask a process to go by closing its input, then make it, with all that it started."""
    assert child.stdin is not None
    assert child.stdout is not None
    with suppress(OSError):  # it is gone already, with its last request unread
        child.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=patience_s)
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()
    child.stdout.close()
