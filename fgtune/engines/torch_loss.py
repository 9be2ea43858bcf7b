"""Cross-entropy over a large vocabulary, exact or sampled."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..data.batches import round_up

VOCABULARY_CHUNK = 8192


# oneDNN and torch's layer over it keep 0.6 MB for each shape of a bfloat16 product, up to 1024 shapes each. Batches
# differ, so row counts are rounded up to few shapes, and few are kept.
ROWS_MULTIPLE, WIDTH_MULTIPLE = 32, 8


# Where a chunk of the vocabulary holds less than this share of a row's probability, its pull is less than what rounding
# takes from the rest, and the product that would form it is left out: most chunks, once the model is sure.
NEGLIGIBLE = {torch.float32: 2.0**-31, torch.bfloat16: 2.0**-20}


# With `softmax="sampled"`: words beside the learned ones that are in every step, and chunks of the others in each.
FREQUENT, SAMPLED_CHUNKS = 16384, 2


ROW_CHUNK = 512  # learned tokens whose logits are held at a time: 16 MB


def _pull(z, part):
    """`z [N, chunk] @ part [chunk, hidden]` in the dtype of `part`, as float32."""
    return (z.to(part.dtype) @ part).float()


class CrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropy of the first rows of `h [N, hidden]` against `targets [<= N]`, over a table
    `[vocabulary, hidden]`, in chunks. What `h` has behind the targets is padding and gets no gradient.

    With `sample` (see `SampledVocabulary`) the sum over the vocabulary in it is an estimate from the pieces that `sample` draws.
    """

    @staticmethod
    def forward(ctx, h, table, targets, sample=None):
        want = ctx.needs_input_grad[0]
        columns = targets if sample is None else sample.place[targets]
        pieces = [(part, None) for part in table.split(VOCABULARY_CHUNK)] if sample is None else sample.draw(targets)
        total, gradients = 0.0, []
        dtype, negligible = table.dtype, NEGLIGIBLE[table.dtype]
        for x, t, column in zip(h.split(ROW_CHUNK), targets.split(ROW_CHUNK), columns.split(ROW_CHUNK)):
            count, spare = len(t), (0, len(x) - len(t))
            rows, column, low = table[F.pad(t, spare)].float(), F.pad(column, spare), x.to(dtype)
            top = (x * rows).sum(dim=1, keepdim=True)  # a good guess at the highest logit: what is learned already
            picked, norm = torch.zeros_like(top), torch.zeros_like(top)
            pulled = torch.zeros_like(x) if want else None
            for k, (part, weight) in enumerate(pieces):
                z = (low @ part.T).float()
                if weight is None:
                    here = torch.nonzero(column // VOCABULARY_CHUNK == k).squeeze(1)
                    picked[here, 0] = z[here, column[here] - k * VOCABULARY_CHUNK]  # rounded as its neighbours are
                else:
                    z += weight
                higher = torch.maximum(top, z.amax(dim=1, keepdim=True))
                fade = (top - higher).exp_()
                top = higher
                mass = z.sub_(top).exp_().sum(dim=1, keepdim=True)
                norm.mul_(fade).add_(mass)
                if want:
                    pulled.mul_(fade)
                    felt = (mass > negligible * norm).squeeze(1)
                    felt[count:] = False
                    felt = _rounded_up(felt)
                    if felt is None:
                        pulled += _pull(z, part)
                    elif len(felt):
                        pulled[felt] += _pull(z[felt], part)
            losses = norm.double().log_().add_(top).sub_(picked)
            total += losses[:count].sum().item()
            if want:
                pulled.div_(norm).sub_(rows)[count:] = 0
                gradients.append(pulled)
        if want:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.tensor(total, dtype=torch.float64)

    @staticmethod
    def backward(ctx, dy):
        return ctx.saved_tensors[0] * dy.float(), None, None, None


class SampledVocabulary:
    """Which words' logits a step makes with `softmax="sampled"`: all that the rows learn, the most frequent ones (low
    ids, as Gemma's follow the order of merges), and a few chunks of the others, drawn anew for each batch.

    The drawn ones count for all the others, so the sum over the vocabulary is estimated without bias (importance
    sampling: Bengio and Senécal 2008, Jean et al. 2015), and no word is out of the gradient's reach. `place
    [vocabulary]` is where a word stands among those that are always taken, or -1.
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
        targets. ValueError for a target that is not among the learned words."""
        if (self.place[targets] < 0).any():
            raise ValueError("a target is not among the learned words")
        count = min(SAMPLED_CHUNKS, len(self.others))
        drawn = random.Random(str(targets.tolist())).sample(self.others, count)
        return self.always + [(part, weight + math.log(len(self.others) / count)) for part, weight in drawn]


def _rounded_up(chosen):
    """Indices of the rows `chosen [N]`, with others to a multiple of `ROWS_MULTIPLE`; None where that is all."""
    wanted = round_up(int(chosen.sum()), ROWS_MULTIPLE)
    return None if wanted >= len(chosen) else torch.argsort(chosen, descending=True)[:wanted]
