"""Pieces of Gemma's layer with a gradient of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class RMSNorm(torch.autograd.Function):
    """RMS norm over the last axis, times `1 + weight`."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        gain = weight + 1
        ctx.save_for_backward(x, scale, gain)
        return (x * scale).mul_(gain)

    @staticmethod
    def backward(ctx, dy):
        x, scale, gain = ctx.saved_tensors
        dw = (dy * (x * scale)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dw, None
        g = dy * gain
        along = (g * x).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(-x.shape[-1])
        return g.mul_(scale).addcmul_(x, along), dw, None


class GatedGelu(torch.autograd.Function):
    """`gelu(gate) * up` of `both [T, 2 n]`, gate first."""

    @staticmethod
    def forward(ctx, both):
        gate, up = both.chunk(2, dim=-1)
        active = F.gelu(gate, approximate="tanh")
        ctx.save_for_backward(both, active)
        return active * up

    @staticmethod
    def backward(ctx, dy):
        both, active = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        d_gate, d_up = out.chunk(2, dim=-1)
        torch.mul(active, dy, out=d_up)
        torch.ops.aten.gelu_backward.grad_input(dy * up, gate, approximate="tanh", grad_input=d_gate)
        return out


class Rotary(torch.autograd.Function):
    """RoPE on `x [T, heads, d]`, halves paired; the gradient is the rotation backwards."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return rotate_halves(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return rotate_halves(dy, cos, -sin), None, None


def rotary_tables(theta: float, head_dim: int, positions):
    """cos and sin `[T, 1, head_dim / 2]` of RoPE at `positions [T]`. Frequencies are float64 until they are rounded."""
    inverse = (theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)).float()
    angles = positions.float()[:, None] * inverse
    return angles.cos()[:, None], angles.sin()[:, None]


def rotate_halves(x, cos, sin):
    """`x [T, heads, d]` rotated: element i of the first half is paired with element i of the second."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
    return out


class Attention(torch.autograd.Function):
    """Softmax attention of `q [..., n, d]` (scaled) over keys, values `[..., m, d]`; `bias [..., n, m]` (0, -inf).

    Products are made in `dtype`, everything else in float32.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, dtype):
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        p = (q @ k.transpose(-1, -2)).float()
        if bias is not None:
            p += bias
        p = torch.softmax(p, dim=-1).to(dtype)
        out = (p @ v).float()
        ctx.save_for_backward(q, k, v, p, out)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, p, out = ctx.saved_tensors
        along = (dout * out).sum(-1, keepdim=True)
        dout = dout.to(p.dtype)
        dv = _transposed_product(p, dout).float()
        ds = (dout @ v.transpose(-1, -2)).float().sub_(along).mul_(p).to(p.dtype)
        return (ds @ k).float(), _transposed_product(ds, q).float(), dv, None, None


def _transposed_product(a, b):
    """`a^T b` of `[K, n, m]` and `[K, n, d]`. torch's bmm copies a transposed operand, its product of two matrices
    does not, so a single key-value head goes that way."""
    return (b[0].T @ a[0]).T[None] if a.shape[0] == 1 else a.transpose(-1, -2) @ b


def fold_heads(x, kv: int, r: int):
    """`[T, kv * r, n] -> [kv, r * T, n]`: the query heads of one key-value head stand below each other."""
    t, _, n = x.shape
    return x.reshape(t, kv, r, n).permute(1, 2, 0, 3).reshape(kv, r * t, n)


def unfold_heads(x, r: int):
    """`[kv, r * T, n] -> [T, kv * r * n]`."""
    kv, _, n = x.shape
    return x.reshape(kv, r, -1, n).permute(2, 0, 1, 3).reshape(-1, kv * r * n)


class RowAttention(torch.autograd.Function):
    """Attention of the rows' own tokens `q [T, kv * r, d]` (scaled) over the prefix and over their own row.

    `k, v [T, kv, d]` are the own tokens', `pk, pv [L, kv, d]` the visible end of the prefix. One product per head
    serves all rows in the prefix; what a row has of its own is padded to `where.width` and multiplied row by row. Both
    parts share one softmax. Returns `[T, kv * r * d]`.
    """

    @staticmethod
    def forward(ctx, q, k, v, pk, pv, where, dtype):
        q, k, v = where.fold(q).to(dtype), where.pad(k).to(dtype), where.pad(v).to(dtype)
        pk, pv = pk.transpose(0, 1).to(dtype), pv.transpose(0, 1).to(dtype)
        own_q = where.spread(q)
        own = (own_q @ k.transpose(-1, -2)).float()
        own.view(*own.shape[:2], where.r, where.width, where.width).add_(where.own_bias)
        top = where.gather(own.amax(-1, keepdim=True))
        shared = (q @ pk.transpose(-1, -2)).float()
        if shared.shape[-1]:
            if where.prefix_bias is not None:
                shared.view(where.kv, where.r, -1, shared.shape[-1]).add_(where.prefix_bias)
            top = torch.maximum(top, shared.amax(-1, keepdim=True))
        shared.sub_(top).exp_()
        own.sub_(where.spread(top)).exp_()
        total = where.gather(own.sum(-1, keepdim=True)).add_(shared.sum(-1, keepdim=True))
        shared = shared.div_(total).to(dtype)
        own = own.div_(where.spread(total, 1.0)).to(dtype)
        out = (shared @ pv).float().add_(where.gather((own @ v).float()))
        ctx.save_for_backward(q, k, v, pk, pv, own_q, own, shared, out)
        ctx.where = where
        return where.unfold(out)

    @staticmethod
    def backward(ctx, dout):
        where = ctx.where
        q, k, v, pk, pv, own_q, own, shared, out = ctx.saved_tensors
        dout = where.fold(dout.view(dout.shape[0], -1, q.shape[-1]))
        along = (dout * out).sum(-1, keepdim=True)
        dout = dout.to(q.dtype)
        own_dout = where.spread(dout)
        ds = (dout @ pv.transpose(-1, -2)).float().sub_(along).mul_(shared).to(q.dtype)
        own_ds = (own_dout @ v.transpose(-1, -2)).float().sub_(where.spread(along)).mul_(own).to(q.dtype)
        dq = (ds @ pk).float().add_(where.gather((own_ds @ k).float()))
        dk = where.unpad((own_ds.transpose(-1, -2) @ own_q).float())
        dv = where.unpad((own.transpose(-1, -2) @ own_dout).float())
        dpk = _transposed_product(ds, q).float().transpose(0, 1)
        dpv = _transposed_product(shared, dout).float().transpose(0, 1)
        return where.unfold(dq).unflatten(1, (-1, q.shape[-1])), dk, dv, dpk, dpv, None, None


class RowLayout:
    """Where the own tokens of the rows lie in one kind of layer, and what they see.

    Folded is `[kv, r * T, n]`: the query heads of one key-value head stand below each other. Spread is the same by
    rows, `[rows, kv, r * width, n]`, with padding.
    """

    def __init__(self, slots, rows: int, width: int, kv: int, r: int, prefix_bias, own_bias):
        self.slots, self.rows, self.width, self.kv, self.r = slots, rows, width, kv, r
        self.prefix_bias, self.own_bias = prefix_bias, own_bias

    def fold(self, x):
        """`[T, kv * r, n]` -> folded."""
        return fold_heads(x, self.kv, self.r)

    def unfold(self, x):
        """Folded -> `[T, kv * r * n]`."""
        return unfold_heads(x, self.r)

    def spread(self, x, padding: float = 0.0):
        """Folded -> spread."""
        n = x.shape[-1]
        packed = x.reshape(self.kv, self.r, -1, n).permute(2, 0, 1, 3)
        whole = x.new_full((self.rows * self.width, self.kv, self.r, n), padding)
        whole[self.slots] = packed
        whole = whole.view(self.rows, self.width, self.kv, self.r, n).permute(0, 2, 3, 1, 4)
        return whole.reshape(self.rows, self.kv, self.r * self.width, n)

    def gather(self, x):
        """Spread -> folded."""
        n = x.shape[-1]
        flat = x.view(self.rows, self.kv, self.r, self.width, n).permute(0, 3, 1, 2, 4)
        flat = flat.reshape(self.rows * self.width, self.kv, self.r, n)[self.slots]
        return flat.permute(1, 2, 0, 3).reshape(self.kv, -1, n)

    def pad(self, x):
        """`[T, kv, n]` -> `[rows, kv, width, n]`."""
        whole = x.new_zeros(self.rows * self.width, *x.shape[1:])
        whole[self.slots] = x
        return whole.view(self.rows, self.width, self.kv, -1).transpose(1, 2)

    def unpad(self, x):
        """`[rows, kv, width, n]` -> `[T, kv, n]`."""
        return x.transpose(1, 2).reshape(self.rows * self.width, self.kv, -1)[self.slots]
