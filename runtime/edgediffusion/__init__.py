"""Diffusion models on edge machines: a lean NumPy runtime around verified static graphs."""

from edgediffusion._version import __version__
from edgediffusion.brownian import brownian_noise
from edgediffusion.bundle import Bundle, Check, verify
from edgediffusion.devices import DeviceReport, devices
from edgediffusion.errors import (
    BundleError,
    BundleNotFound,
    Cancelled,
    CheckpointError,
    DeviceError,
    EdgeDiffusionError,
    EngineError,
    IntegrityError,
    ManifestError,
    NumericalError,
    OutputError,
    ParityError,
    RequestError,
    ScheduleError,
    UnsafePath,
)
from edgediffusion.manifest import Manifest
from edgediffusion.noise import TorchCpuNoise, randn
from edgediffusion.philox import TorchCudaNoise
from edgediffusion.picture import request_from_png, save_png
from edgediffusion.pipeline import Pipeline
from edgediffusion.request import Request
from edgediffusion.result import Embeddings, Result, Step
from edgediffusion.samplers import SAMPLERS, sample
from edgediffusion.schedule import Schedule, schedule_from_config
from edgediffusion.start_image import StartImage
from edgediffusion.textual_inversion import TextualInversion
from edgediffusion.timing import Timings

__all__ = [
    "SAMPLERS",
    "Bundle",
    "BundleError",
    "BundleNotFound",
    "Cancelled",
    "Check",
    "CheckpointError",
    "DeviceError",
    "DeviceReport",
    "EdgeDiffusionError",
    "Embeddings",
    "EngineError",
    "IntegrityError",
    "Manifest",
    "ManifestError",
    "NumericalError",
    "OutputError",
    "ParityError",
    "Pipeline",
    "Request",
    "RequestError",
    "Result",
    "Schedule",
    "ScheduleError",
    "StartImage",
    "Step",
    "TextualInversion",
    "Timings",
    "TorchCpuNoise",
    "TorchCudaNoise",
    "UnsafePath",
    "__version__",
    "brownian_noise",
    "devices",
    "randn",
    "request_from_png",
    "sample",
    "save_png",
    "schedule_from_config",
    "verify",
]
