"""Worker for Optimum's pipelines on ONNX Runtime: diffusers' loop around ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from benchmarks.contenders.protocol import Hello, Job, serve
from benchmarks.contenders.with_diffusers import Pipelines


def greet(options: Mapping[str, Any]) -> Hello:
    """Versions of what Optimum runs on."""
    import optimum.onnxruntime  # noqa: F401 -- its import is no part of loading a model

    names = ("optimum-onnx", "optimum", "onnxruntime", "diffusers", "torch", "transformers")
    return Hello({name: version(name) for name in names})


def open_onnx(job: Job) -> Any:
    """Optimum's pipeline on exported graphs."""
    from optimum.onnxruntime import ORTDiffusionPipeline

    return ORTDiffusionPipeline.from_pretrained(
        job.model, provider="CPUExecutionProvider", local_files_only=True
    )


if __name__ == "__main__":
    serve(Pipelines(greet, open_onnx))
