"""Latency per step of one bundle: ``edgediffusion bench`` with a results file.

    python benchmarks/step_latency.py BUNDLE --json benchmarks/results/MACHINE/step_latency.json

The measuring is ``edgediffusion.bench``, the same code that runs on the device.
"""

from __future__ import annotations

import sys

from edgediffusion.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *sys.argv[1:]]))
