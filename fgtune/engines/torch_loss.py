"""Cross-entropy over a large vocabulary, exact or sampled."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..data.batches import round_up

VOCABULARY_CHUNK = 8192
ROW_CHUNK = 512  # learned tokens whose logits are held at a time: 16 MB
# oneDNN and torch's layer over it keep 0.6 MB for each shape of a bfloat16 product, up to 1024 shapes each. Batches
# differ, so row counts are rounded up to few shapes, and few are kept.
ROWS_MULTIPLE, WIDTH_MULTIPLE = 32, 8
# Where a chunk of the vocabulary holds less than this share of a row's probability, its part of the gradient is less
# than what rounding takes from the rest, and the product that would form it is left out: most chunks, once the model is
# sure.
NEGLIGIBLE = {torch.float32: 2.0**-31, torch.bfloat16: 2.0**-20}
# With `softmax="sampled"`: tokens beside the learned ones that are in every step, and chunks of the others in each.
FREQUENT, SAMPLED_CHUNKS = 16384, 2


class CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of the first rows of `h [N, hidden]` against `targets [<= N]`, over a table
    `[vocabulary, hidden]`, in chunks. What `h` has behind the targets is padding and gets no gradient.

    With `sample` (see `SampledVocabulary`) the sum over the vocabulary is an estimate, from the pieces that it draws.
    """

    @staticmethod
    def forward(ctx, h, table, targets, sample: SampledVocabulary | None = None):
        columns = targets if sample is None else sample.place[targets]
        pieces = [(part, None) for part in table.split(VOCABULARY_CHUNK)] if sample is None else sample.draw(targets)
        total, gradients = 0.0, []
        for x, t, column in zip(h.split(ROW_CHUNK), targets.split(ROW_CHUNK), columns.split(ROW_CHUNK)):
            spare = (0, len(x) - len(t))
            rows = table[F.pad(t, spare)].float()
            softmax = RunningSoftmax(x, table.dtype, rows, F.pad(column, spare), len(t), ctx.needs_input_grad[0])
            for k, (part, weight) in enumerate(pieces):
                softmax.add_chunk(k, part, weight)
            total += softmax.losses()[: len(t)].sum().item()
            if ctx.needs_input_grad[0]:
                gradients.append(softmax.gradient())
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.tensor(total, dtype=torch.float64)

    @staticmethod
    def backward(ctx, dy):
        return ctx.saved_tensors[0] * dy.float(), None, None, None


class RunningSoftmax:
    """Softmax of states `x [n, hidden]` over a vocabulary that comes in chunks: losses, and the gradient for `x`.

    `target_rows [n, hidden]` are the table's rows of the targets, and `column [n]` is where each target stands among
    all chunks. Products are made in `dtype`, the table's. What is behind the first `count` states is padding.
    """

    def __init__(self, x, dtype, target_rows, column, count: int, with_gradient: bool):
        self.x, self.target_rows, self.column, self.count = x.to(dtype), target_rows, column, count
        self.highest = (x * target_rows).sum(dim=1, keepdim=True)  # a good guess: what is learned already
        self.target_logit, self.total = torch.zeros_like(self.highest), torch.zeros_like(self.highest)
        self.weighted = torch.zeros_like(x) if with_gradient else None  # table rows by exp(logit - highest)

    def add_chunk(self, k: int, part, weight) -> None:
        """Chunk `k` `[chunk, hidden]` of the table; `weight` `[chunk]` or None is added to its logits."""
        z = (self.x @ part.T).float()
        if weight is None:
            here = torch.nonzero(self.column // VOCABULARY_CHUNK == k).squeeze(1)
            target = z[here, self.column[here] - k * VOCABULARY_CHUNK]  # rounded as its neighbours are
            self.target_logit[here, 0] = target
        else:
            z += weight
        higher = torch.maximum(self.highest, z.amax(dim=1, keepdim=True))
        fade = (self.highest - higher).exp_()
        self.highest = higher
        mass = z.sub_(higher).exp_().sum(dim=1, keepdim=True)
        self.total.mul_(fade).add_(mass)
        if self.weighted is not None:
            self.weighted.mul_(fade)
            self._add_weighted_rows(z, part, mass)

    def _add_weighted_rows(self, z, part, mass) -> None:
        """The chunk's share of the gradient, for the states to which it is not negligible."""
        needed = (mass > NEGLIGIBLE[part.dtype] * self.total).squeeze(1)
        needed[self.count :] = False
        needed = _rounded_up(needed)
        if needed is None:
            self.weighted += _weighted_rows(z, part)
        elif len(needed):
            self.weighted[needed] += _weighted_rows(z[needed], part)

    def losses(self):
        """Cross-entropy `[n, 1]` in nats, float64."""
        return self.total.double().log_().add_(self.highest).sub_(self.target_logit)

    def gradient(self):
        """Gradient `[n, hidden]` of the sum of the losses, 0 for padding; call it once, at the end."""
        gradient = self.weighted.div_(self.total).sub_(self.target_rows)
        gradient[self.count :] = 0
        return gradient


def _weighted_rows(z, part):
    """`z [N, chunk] @ part [chunk, hidden]` in the dtype of `part`, as float32."""
    return (z.to(part.dtype) @ part).float()


class SampledVocabulary:
    """Which tokens' logits a step computes with `softmax="sampled"`.

    These are all tokens that the rows learn, the most frequent ones (low ids, as Gemma's follow the order of merges),
    and a few chunks of the others, drawn anew for each batch. The drawn ones count for all the others, so the sum over
    the vocabulary is estimated without bias (importance sampling: Bengio and Senécal 2008, Jean et al. 2015), and every
    token can get a gradient. `place [vocabulary]` is where a token stands among those that are always taken, or -1.
    """

    def __init__(self, table, learned: Iterable[int]):
        total = len(table)
        taken = torch.zeros(total, dtype=torch.bool)
        taken[torch.tensor(sorted(set(learned)), dtype=torch.long)] = True
        wanted = min(total, round_up(int(taken.sum()) + FREQUENT, VOCABULARY_CHUNK))
        taken[torch.nonzero(~taken).squeeze(1)[: wanted - int(taken.sum())]] = True
        self.ids = torch.nonzero(taken).squeeze(1)
        self.place = torch.full((total,), -1)
        self.place[self.ids] = torch.arange(len(self.ids))
        self.always = [(part, None) for part in table[self.ids].split(VOCABULARY_CHUNK)]
        rest = torch.where(taken, -math.inf, 0.0)
        self.others = [
            (part, weight)
            for part, weight in zip(table.split(VOCABULARY_CHUNK), rest.split(VOCABULARY_CHUNK))
            if weight.max() == 0
        ]

    def draw(self, targets) -> list[tuple]:
        """(rows of the table, None or what is added to their logits) of the pieces for a batch, the same for the same
        targets. ValueError for a target that is not among the learned tokens."""
        if (self.place[targets] < 0).any():
            raise ValueError("a target is not among the learned tokens")
        count = min(SAMPLED_CHUNKS, len(self.others))
        drawn = random.Random(str(targets.tolist())).sample(self.others, count)
        return self.always + [(part, weight + math.log(len(self.others) / count)) for part, weight in drawn]


def _rounded_up(chosen):
    """Indices of the rows `chosen [N]`, with others to a multiple of `ROWS_MULTIPLE`; None where that is all."""
    wanted = round_up(int(chosen.sum()), ROWS_MULTIPLE)
    return None if wanted >= len(chosen) else torch.argsort(chosen, descending=True)[:wanted]
