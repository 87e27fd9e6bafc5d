from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgediffusion.bundle import parse_size
from edgediffusion.errors import DeviceError, EdgeDiffusionError, RequestError
from edgediffusion_export.options import ExportOptions


@pytest.mark.parametrize(
    ("text", "size"), [("512x768", (512, 768)), ("64", (64, 64)), (" 8X16 ", (8, 16))]
)
def test_sizes_are_height_times_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "512x", "x512", "512*512", "-64x64", "64x64x64", "1e3", "٣"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is not HEIGHTxWIDTH in pixels"):
        parse_size(text)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp23"}, RequestError, "unknown precision 'fp23': did you mean fp"),
        ({"store": "sauce"}, RequestError, "unknown store 'sauce': did you mean source"),
        ({"precision": "fp16", "store": "fp32"}, RequestError, "hold fp16 weights: leave --store"),
        ({"precision": "int8"}, RequestError, "needs prompts to calibrate with: pass --calibrate"),
        ({"calibrate": Path("p")}, RequestError, "calibration is for --precision int8 only, got f"),
        ({"reduce_range": True}, RequestError, "reduced range is for int8 weights, got prec"),
        ({"targets": ("gpu",)}, DeviceError, "unknown target 'gpu'.*cpu"),
        ({"targets": ("tensorrt",)}, DeviceError, "is no target: .* any fp16 bundle. Leave --targ"),
        ({"batches": (0,)}, RequestError, r"batch sizes must be from 1 to 64, got \[0\]"),
        ({"batches": ()}, RequestError, "batch sizes must be"),
        ({"chunks": 0}, RequestError, "chunks must be from 1 to 16, got 0"),
        ({"chunks": 17}, RequestError, "chunks must be from 1 to 16, got 17"),
        ({"attention_tiles": 0}, RequestError, "attention tiles must be from 1 to 8 a side, got 0"),
        ({"split": 0}, RequestError, "split must be from 1 to 64 parts, got 0"),
        ({"rewrites": ("atention",)}, RequestError, "unknown rewrite 'atention': did you mean att"),
        ({"steps": 0}, RequestError, "steps must be at least 1, got 0"),
        ({"sampler": "unipk"}, RequestError, "unknown sampler 'unipk': did you mean unipc"),
        ({"guidance": float("nan")}, RequestError, "guidance must be a number .* got nan"),
        ({"guidance": float("inf")}, RequestError, "guidance must be a number"),
    ],
)
def test_senseless_options_are_refused(
    options: dict[str, Any], error: type[EdgeDiffusionError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ExportOptions(checkpoint="c", output=Path("b"), **options)
