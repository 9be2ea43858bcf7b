"""Shares of cases: as numbers, with an interval, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence


def share(flags: Sequence[bool]) -> float | None:
    """How many of the flags are set, 0 to 1; None without a flag."""
    return sum(flags) / len(flags) if flags else None


def percent(value: float | None, digits: int = 1) -> str:
    """`0.25` -> `25.0%`; `–` for a share of nothing (None)."""
    return "–" if value is None else f"{value:.{digits}%}"


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` cases. Source: E. B. Wilson, JASA 22 (1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = hits / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
