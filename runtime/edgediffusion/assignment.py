"""Which library runs which operator of a session: what ONNX Runtime decided, read back."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

RECORD: Final = {"session.record_ep_graph_assignment_info": "1"}
"""Configuration entry with which a session remembers its assignment."""

WHOLE: Final = {"session.disable_cpu_ep_fallback": "1"}
"""Configuration entry with which a session that hands nodes to the CPU provider does not open."""


def elsewhere(session: Any, provider: str) -> Counter[str]:
    """Count the operators of a session that are not ``provider``'s, by domain and name."""
    return Counter(
        f"{node.domain}.{node.op_type}".lstrip(".")
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider
        for node in part.get_nodes()
    )


def say_operators(operators: Counter[str]) -> str:
    """List operators with how often each is there."""
    return ", ".join(f"{name} ({n}x)" for name, n in sorted(operators.items()))
