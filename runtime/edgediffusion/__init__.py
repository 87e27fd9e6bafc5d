"""Diffusion models on edge machines."""

from edgediffusion._version import __version__

__all__ = ["__version__"]
