"""Write benchmarks/results/sampler_parity.json: how near the whole matrix comes to diffusers.

python -m tests.parity.report        (from the repository root; --only SAMPLER prints, writes not)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.parity.judge import Verdict, judge
from tests.parity.matrix import MATRIX, matrix, refused
from tests.parity.ours import BOUND
from tests.parity.rows import Row

FILE: Final = Path(__file__).parents[2] / "benchmarks" / "results" / "sampler_parity.json"

AGAINST: Final = ("float32", "float64", "nearer")

Judged = Mapping[Row, Verdict]


def judged(only: list[str]) -> Iterator[tuple[Row, Verdict]]:
    """Run every row; say at once which fail."""
    for row in matrix():
        if only and row.sampler not in only:
            continue
        try:
            verdict = judge(row)
        except Exception as error:  # reported with the rest; the tests raise it
            print(f"{row}: {type(error).__name__}: {error}"[:300], flush=True)
            verdict = Verdict(float("inf"), 0, passes=False)
        else:
            if not verdict.passes:
                print(f"{row}: {verdict}", flush=True)
        yield row, verdict


def worst(verdicts: Mapping[Row, Verdict]) -> dict[str, Any] | None:
    """Find the row that is furthest away."""
    if not verdicts:
        return None
    row = max(verdicts, key=lambda each: verdicts[each].error)
    found = {"row": str(row), "error": _rounded(verdicts[row].error)}
    theirs = verdicts[row].theirs
    return found if theirs is None else found | {"error_of_diffusers_float32": _rounded(theirs)}


def summary(verdicts: Judged) -> dict[str, Any]:
    """Sum a class up."""
    against = {
        name: {row: v for row, v in verdicts.items() if v.against == name} for name in AGAINST
    }
    return {
        "rows": len(verdicts),
        "passed": sum(verdict.passes for verdict in verdicts.values()),
        "failed": sum(not verdict.passes for verdict in verdicts.values()),
        **{f"rows_against_{name}": len(own) for name, own in against.items()},
        **{f"worst_against_{name}": worst(own) for name, own in against.items()},
    }


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def report(verdicts: Judged) -> dict[str, Any]:
    """Everything, class by class."""
    import diffusers
    import torch

    by_class = {
        name: {row: v for row, v in verdicts.items() if row.class_name == name} for name in MATRIX
    }
    return {
        "command": "python -m tests.parity.report",
        "date": datetime.now(UTC).date().isoformat(),
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "bound": BOUND,
        "against": {
            "float32": "diffusers as it is",
            "float64": "diffusers in double: its float32 is further than the bound from that",
            "nearer": "diffusers in double: its float32 is within the bound, ours is nearer, but "
            "the two are further than the bound from one another",
        },
        "rows": len(verdicts),
        "refused_by_diffusers": len(refused()),
        "classes": {name: summary(own) for name, own in by_class.items() if own},
    }


def main() -> None:
    """Run the matrix; write the file, or print it where only some samplers were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="SAMPLER")
    only = parser.parse_args().only
    text = json.dumps(report(dict(judged(only))), indent=1)
    if only:
        print(text)
    else:
        FILE.write_text(text + "\n")
        print(FILE)


if __name__ == "__main__":
    main()
