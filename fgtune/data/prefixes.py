"""What token rows have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ..format.tokens import END_OF_TURN


def group_by_first_turn(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows that agree up to the end of their first turn (the developer's, with the tools)."""
    groups: dict[tuple, list[int]] = {}
    for i, ids in enumerate(rows):
        end = ids.index(END_OF_TURN) if END_OF_TURN in ids else 0
        groups.setdefault(tuple(ids[:end]), []).append(i)
    return list(groups.values())


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves at least one token to every row."""
    if not rows:
        return 0
    return max(0, min(shared_length(rows), min(len(r) for r in rows) - 1))


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """With how many equal tokens the rows begin (at least one row)."""
    low, high = min(rows), max(rows)
    ends = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return next(ends, min(len(low), len(high)))
