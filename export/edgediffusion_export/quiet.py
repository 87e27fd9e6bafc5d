"""Silence what upstream libraries say about themselves and a user cannot act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# It reports every torchvision operator that it skips, although no graph here needs one.
_ONNX_REGISTRY: Final = "torch.onnx._internal.exporter._registration"


@contextmanager
def quiet_onnx() -> Iterator[None]:
    """Hide torch.onnx's deprecation warnings about its own internals."""
    logger = logging.getLogger(_ONNX_REGISTRY)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                for module in (r"copyreg", r"torch\..*", r"onnxscript\..*", r"onnx_ir\..*"):
                    warnings.filterwarnings("ignore", category=kind, module=module)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the progress bars and remarks of diffusers and transformers while they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for module in (r"diffusers\..*", r"transformers\..*", r"torch\..*"):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
