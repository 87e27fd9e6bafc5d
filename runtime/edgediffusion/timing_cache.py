"""What TensorRT measured when it chose kernels, kept for the next build on the same GPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from edgediffusion.engine_cache import EngineCache

_FILE: Final = "timing.cache"


@dataclass(frozen=True)
class TimingCache:
    """An entry of the engine cache for each library, driver and GPU: ``machine``."""

    cache: EngineCache
    machine: Mapping[str, str]

    def read(self) -> bytes:
        """Return what was kept; empty where there is nothing, or nothing intact."""
        lease = self.cache.find(self._facts)
        if lease is None:
            return b""
        try:
            return (lease.folder / _FILE).read_bytes()
        except OSError:
            return b""
        finally:
            lease.release()

    def keep(self, content: bytes) -> None:
        """Replace what was kept. It is a convenience: a full disk is no error."""
        with suppress(OSError):
            self.cache.discard(self._facts)
            with self.cache.building(self._facts, "kernel timings") as folder:
                if folder is not None:
                    (folder / _FILE).write_bytes(content)

    @property
    def _facts(self) -> dict[str, str]:
        return {"device": "tensorrt", "what": "timing cache", **self.machine}
