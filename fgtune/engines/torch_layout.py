"""Where the packed tokens of a batch lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..data.batches import round_up
from .torch_loss import ROWS_MULTIPLE, WIDTH_MULTIPLE


@dataclass
class PackedLayout:
    """Where packed tokens lie. `ids [T]`, `positions [T]`; rows are padded to width `S` only inside attention.

    T, S and the number of learned tokens are rounded up; what is added has no target, and no gradient.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    prefix: int
    rows: int
    width: int
    slots: torch.Tensor  # where packed row tokens go in the padded [rows * width]
    learned: torch.Tensor  # packed indices (behind the prefix) that predict a target, padded
    targets: torch.Tensor

    @classmethod
    def of(cls, batch) -> PackedLayout:
        P, lengths = len(batch.prefix), [len(r) for r in batch.rows]
        width = round_up(max(lengths), WIDTH_MULTIPLE)
        spare = round_up(sum(lengths), ROWS_MULTIPLE) - sum(lengths)
        rows = []
        for r in batch.rows:  # the padding sits behind what it could disturb
            more = min(spare, width - len(r))
            spare -= more
            rows.append([*r, *[0] * more])
        starts = np.cumsum([0] + [len(r) for r in rows])
        slots = [b * width + s for b, r in enumerate(rows) for s in range(len(r))]
        positions = list(range(P)) + [P + s for r in rows for s in range(len(r))]
        learned = [int(starts[b]) + s for b, s in batch.where]
        learned += [0] * (round_up(len(learned), ROWS_MULTIPLE) - len(learned))
        return cls(
            torch.tensor(list(batch.prefix) + [i for r in rows for i in r]),
            torch.tensor(positions),
            P,
            len(rows),
            width,
            torch.tensor(slots),
            torch.tensor(learned),
            torch.tensor(batch.targets),
        )


def attention_bias(queries, keys, window: int | None):
    """0 where a key's position is visible from a query's, -inf elsewhere; None where everything is."""
    hidden = keys[None] > queries[:, None]
    if window:
        hidden |= queries[:, None] - keys[None] >= window
    return torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf) if hidden.any() else None
