"""One process at a time builds engines on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from filelock import FileLock

from edgediffusion.engine_cache import EngineCache

_LOCK: Final = ".building"


@contextmanager
def one_builder(cache: EngineCache) -> Iterator[None]:
    """Wait for the turn to build.

    A build takes minutes and measures kernels, which another build beside it would disturb. Who
    had to wait should look whether the engine is there now. The operating system's lock goes with
    its process, however that ends. Without a cache folder everybody builds.
    """
    with ExitStack() as held:
        if cache.limit:
            try:
                cache.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(cache.folder / _LOCK, thread_local=False))
            except OSError:
                pass  # the cache says once in a warning that its folder cannot be used
        yield
