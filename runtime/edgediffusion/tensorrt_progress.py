"""Stop a build of TensorRT with Ctrl-C.

The library calls its progress monitor from C++ that no exception may pass through, and a build
takes up to minutes. So Ctrl-C only leaves a mark while it builds, which stops it at its next step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def stopped_by_ctrl_c(trt: ModuleType, config: Any) -> Iterator[None]:
    """Let Ctrl-C stop the build that the block makes with ``config``; raises KeyboardInterrupt.

    Python hears of Ctrl-C in the main thread only; a build in another one goes on to its end.
    """
    stop = threading.Event()
    monitor = _monitor(trt, stop)
    config.progress_monitor = monitor
    try:
        with _marks(stop):
            yield
    finally:
        config.progress_monitor = None  # the library does not keep it alive
    if stop.is_set():
        raise KeyboardInterrupt


@contextmanager
def _marks(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at Ctrl-C, in place of whatever else it does."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(trt: ModuleType, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # a class of ``trt``
        """Asks after each step whether to go on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            return not stop.is_set()

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
