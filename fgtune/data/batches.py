"""Batches of token rows over one prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import TrainError
from .prefixes import shared_length
from .rows import Row


@dataclass(frozen=True)
class Batch:
    """Rows over one prefix, as lists: `prefix [P]`, `rows [B][<= S]` (what follows it), and for each learned token
    the row and the column (within `rows`) that predict it, and its id."""

    prefix: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    where: tuple[tuple[int, int], ...]
    targets: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, the prefix counted for each row."""
        return sum(len(r) + len(self.prefix) for r in self.rows)


def make_batch(rows: Sequence[Row]) -> Batch:
    """The batch of rows over what their prefixes have in common; the split moves forward if a target needs it."""
    length = min(min(r.prefix, max(first_target(r) - 1, 0)) for r in rows)
    length = shared_length([r.ids[:length] for r in rows])
    prefix = tuple(rows[0].ids[:length])
    where, targets, suffixes = [], [], []
    for b, r in enumerate(rows):
        ids = r.ids
        suffixes.append(tuple(ids[length : last_target(r)]))  # the last target is predicted, never read
        for i, learned in enumerate(r.targets):
            if learned and i:
                where.append((b, i - 1 - length))
                targets.append(ids[i])
    return Batch(prefix, tuple(suffixes), tuple(where), tuple(targets))


def first_target(row: Row) -> int:
    """Index of the first learned token (index 0 cannot be predicted); TrainError if there is none."""
    for i, learned in enumerate(row.targets):
        if learned and i:
            return i
    raise TrainError("a row has no token to learn: every row needs an assistant turn")


def last_target(row: Row) -> int:
    """Index of the last learned token."""
    return max(i for i, learned in enumerate(row.targets) if learned)


def check_rows(rows: Sequence[Row], name: str = "rows") -> None:
    """Raise TrainError for what cannot be trained on."""
    if not rows:
        raise TrainError(f"no {name}")
    for i, r in enumerate(rows):
        if len(r.ids) != len(r.targets):
            raise TrainError(f"{name}, row {i + 1}: {len(r.ids)} ids but {len(r.targets)} targets")
        if not 0 <= r.prefix <= len(r.ids):
            raise TrainError(f"{name}, row {i + 1}: prefix {r.prefix} of {len(r.ids)} ids")
        first_target(r)


def round_up(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `n`."""
    return -(-n // multiple) * multiple
