"""Loss and gradients by MLX, on any device."""

from __future__ import annotations

from ..core import blas
from ..data.batches import Batch, round_up
from . import mlx_forward as forward
from .protocols import StepEngine


def batch_arrays(batch: Batch, multiple: int = 1):
    """The batch as MLX arrays `(prefix [P], rows [B, S], where [N], targets [N], weights [N])`.

    `where` counts positions of the flattened `[B, S]`. S and N are padded to a `multiple`, with weight 0.
    """
    mx = blas.mlx()
    width = round_up(max(len(r) for r in batch.rows), multiple)
    rows = [list(r) + [0] * (width - len(r)) for r in batch.rows]
    count = len(batch.targets)
    padding = round_up(count, multiple) - count
    where = [b * width + s for b, s in batch.where] + [0] * padding
    return (
        mx.array(list(batch.prefix), dtype=mx.int32),
        mx.array(rows, dtype=mx.int32),
        mx.array(where, dtype=mx.int32),
        mx.array(list(batch.targets) + [0] * padding, dtype=mx.int32),
        mx.array([1.0] * count + [0.0] * padding, dtype=mx.float32),
    )


def shared_loss(model, prefix, rows, where, targets, weights, prefix_chunk: int = 256, logits_chunk: int = 64):
    """(mean cross-entropy over the learned tokens, their number), differentiable; `batch_arrays` gives the arrays."""
    shared = forward.run_prefix(model, prefix, prefix_chunk)
    h = forward.run_rows(model, rows, shared)
    h = model.model.norm(h.reshape(-1, h.shape[-1])[where])
    count = weights.sum()
    return cross_entropy_sum(model, h, targets, weights, logits_chunk) / count, count


def cross_entropy_sum(model, h, targets, weights, chunk: int = 64):
    """Weighted sum of the cross-entropy of normed hidden states `h [N, hidden]`, with `chunk` rows of logits at a time.

    The gradient for `h` is made beside the loss, chunk by chunk, so that no logits are kept for a backward pass.
    """
    import mlx.nn as nn

    mx = blas.mlx()
    head = model.model.embed_tokens if model.tie_word_embeddings else model.lm_head
    if type(head) not in (nn.Embedding, nn.Linear):  # quantised: let MLX differentiate, a chunk recomputed at a time

        @mx.checkpoint
        def part(h, targets, weights):
            z = (head.as_linear(h) if model.tie_word_embeddings else head(h)).astype(mx.float32)
            picked = mx.take_along_axis(z, targets[:, None], axis=-1)[:, 0]
            return ((mx.logsumexp(z, axis=-1) - picked) * weights).sum()

        pieces = range(0, h.shape[0], chunk)
        return sum(part(h[a : a + chunk], targets[a : a + chunk], weights[a : a + chunk]) for a in pieces)
    table = head.weight

    @mx.custom_function
    def entropy(h, targets, weights):
        total, gradients = mx.array(0.0), []
        for a in range(0, h.shape[0], chunk):
            x, w = h[a : a + chunk], weights[a : a + chunk, None]
            rows = table[targets[a : a + chunk]]
            z = (x @ table.T).astype(mx.float32)
            top = mx.max(z, axis=-1, keepdims=True)
            z = mx.exp(z - top)
            norm = z.sum(axis=-1, keepdims=True)
            picked = (x.astype(mx.float32) * rows.astype(mx.float32)).sum(axis=-1, keepdims=True)
            total = total + ((mx.log(norm) + top - picked) * w).sum()
            pulled = ((z @ table.astype(mx.float32)) if x.dtype == mx.float32 else (z.astype(x.dtype) @ table)) / norm
            gradients.append(((pulled - rows) * w).astype(x.dtype))
        return total, mx.concatenate(gradients)

    @entropy.vjp
    def entropy_vjp(primals, cotangents, outputs):
        _, targets, weights = primals
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype), mx.zeros_like(targets), mx.zeros_like(weights)

    return entropy(h, targets, weights)[0]


class MlxEngine(StepEngine):
    """A `StepEngine` by MLX, on any device."""

    name = "mlx"

    def __init__(self, model, config):
        import mlx.nn as nn

        mx = blas.mlx()
        self.model = model
        self.multiple = 16 if mx.default_device() == mx.gpu else 1

        def loss(model, *arrays):
            mean, count = shared_loss(model, *arrays, config.prefix_chunk, config.logits_chunk)
            return mean * count, count

        self._loss, self._gradients = loss, nn.value_and_grad(model, loss)

    def loss(self, batch: Batch) -> tuple[float, int]:
        """(sum of the cross-entropy, learned tokens)."""
        return self._loss(self.model, *batch_arrays(batch, self.multiple))[0].item(), len(batch.targets)

    def gradients(self, batch: Batch):
        """(sum of the cross-entropy, tree of the sum's gradients), evaluated."""
        mx = blas.mlx()
        (total, _), tree = self._gradients(self.model, *batch_arrays(batch, self.multiple))
        mx.eval(total, tree)
        return total.item(), tree
