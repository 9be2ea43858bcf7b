"""The order of batches: every row once per epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..data.batches import make_batch
from ..data.rows import Row
from ..engines.mlx_step import batch_arrays


def plan_epoch(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of every row once, shuffled, in batches whose rows share their prefix; a function of seed and epoch.

    Prefixes of too few rows to fill half a batch, as of developer turns with a date each, are batched together: such a
    batch shares what its prefixes have in common (`make_batch`). When `batch_size` does not divide the rows, batches
    are of nearly equal size. Rows are not sorted by length: rows of like length are rows of like kind, and steps of
    text answers alone undo what calls have learned.
    """
    rng = random.Random(f"{seed}/{epoch}")
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(tuple(row.ids[: row.prefix]), []).append(i)
    batches, small = [], []
    for group in groups.values():
        rng.shuffle(group)
        if 2 * len(group) <= batch_size:
            small.append(group)
        else:
            batches += _equal_parts(group, batch_size)
    if len(small) > 1:
        rng.shuffle(small)
    batches += _equal_parts([i for group in small for i in group], batch_size)  # rows of one prefix side by side
    rng.shuffle(batches)
    return batches


def _equal_parts(group: list[int], most: int) -> list[list[int]]:
    """`group` cut into the fewest parts of at most `most`, of nearly equal size."""
    if not group:
        return []
    count = math.ceil(len(group) / most)
    edges = [round(k * len(group) / count) for k in range(count + 1)]
    return [group[a:b] for a, b in pairwise(edges)]


def batches_from(rows: Sequence[Row], batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of indices from batch number `start` on: epoch after epoch, each with an order of its own."""
    epoch = 0
    while True:
        plan = plan_epoch(rows, batch_size, seed, epoch)
        if start >= len(plan):
            start -= len(plan)
        else:
            yield from plan[start:]
            start = 0
        epoch += 1


def iterate_batches(dataset, batch_size, max_seq_length=None, loop=False, seed=None, comm_group=None):
    """mlx-lm's `iterate_batches=` for `shared_loss`: arrays of every batch of `dataset` (a sequence of Row)."""
    rows, epoch = list(dataset), 0
    rank, size = (comm_group.rank(), comm_group.size()) if comm_group is not None else (0, 1)
    while True:
        for indices in plan_epoch(rows, batch_size, seed or 0, epoch):
            yield batch_arrays(make_batch([rows[i] for i in indices[rank::size] or indices[:1]]))
        epoch += 1
        if not loop:
            return
