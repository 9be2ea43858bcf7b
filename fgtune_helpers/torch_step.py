"""Loss and gradients of the MLX model on a CPU, by torch's kernels over the same memory.

MLX's CPU backend runs everything but matrix products on one thread, an exponential at a time. torch (a dependency
already) has vectorised kernels on all cores. The model, the adapters, the optimiser and the files stay MLX's: weights
are read where they lie, adapter gradients are handed back. What makes the step cheap, all of it exact:

- tokens are packed: the shared prefix once, then each row's own tokens, without padding, through one product a layer;
- W + scale * (A B)^T is formed once a step, so adapters cost no pass of their own forward and two thin ones backward;
- the prefix's attention goes in blocks that see only what the sliding window lets them see;
- the last layer runs only where something is learned, and no gradient is made below the first adapter;
- below the first adapter the prefix runs once for the whole training, since nothing changes there;
- the cross-entropy walks over the vocabulary with a running maximum and makes its gradient on the way, without the
  words that the model is sure not to say.

Shapes: `T` packed tokens, `P` prefix, `K` key-value heads, `r` query heads for each, `d` head size.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import random
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import blas
from .train import round_up

BLOCK = 256  # queries per attention block of the prefix
VOCABULARY_CHUNK = 8192
MOST_PREFIXES = 8  # whose run through the frozen layers is kept
TRIM_EVERY = 8  # steps; in between, freed memory stays with the process
# oneDNN and torch's layer over it keep 0.6 MB for each shape of a bfloat16 product, up to 1024 shapes each. Batches
# differ, so row counts are rounded up to few shapes, and few are kept.
ROWS_MULTIPLE, WIDTH_MULTIPLE = 32, 8
SHAPES_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}
# Where a chunk of the vocabulary holds less than this share of a row's probability, its pull is less than what rounding
# takes from the rest, and the product that would form it is left out: most chunks, once the model is sure.
NEGLIGIBLE = {torch.float32: 2.0**-31, torch.bfloat16: 2.0**-20}
# With `softmax="sampled"`: words beside the learned ones that are in every step, and chunks of the others in each.
FREQUENT, SAMPLED_CHUNKS = 16384, 2
ROW_CHUNK = 512  # learned tokens whose logits are held at a time: 16 MB

for _name, _capacity in SHAPES_KEPT.items():  # read at the first product
    os.environ.setdefault(_name, _capacity)


def why_not(model) -> str | None:
    """Why this engine cannot run the model, or None if it can."""
    import mlx.nn as nn

    mx = blas.mlx()
    if mx.default_device() == mx.gpu:
        return "the model is on a GPU"
    if model.model.norm.weight.dtype != mx.float32:
        return "the weights are not float32"
    head = model.model.embed_tokens if model.tie_word_embeddings else model.lm_head
    if type(head) not in (nn.Embedding, nn.Linear) or model.args.rope_scaling:
        return "the model is quantised or scales its RoPE"
    for layer in model.layers:
        for _, _, module in _linears(layer):
            inner = module.linear if "lora_a" in module else module
            if type(inner) is not nn.Linear or "bias" in inner:
                return "the model is quantised or has biases"
            if "lora_a" in module and getattr(module.dropout, "_p_1", 1.0) < 1.0:
                return "dropout is on"
    return None


def why_not_bfloat16() -> str | None:
    """Why bfloat16 products would be slow here, or None where the processor has instructions for them."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this processor has no instructions for bfloat16 (AVX512-BF16 or AMX)"


def give_memory_back() -> None:
    """Let glibc return what lies free between blocks still in use: batches differ in size, and holes add up."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _linears(layer):
    """(group, name, module) of a layer's linear layers; a group's outputs stand side by side."""
    attn, mlp = layer.self_attn, layer.mlp
    for name in ("q_proj", "k_proj", "v_proj"):
        yield "qkv", f"self_attn.{name}", attn[name]
    yield "out", "self_attn.o_proj", attn["o_proj"]
    for name in ("gate_proj", "up_proj"):
        yield "gate_up", f"mlp.{name}", mlp[name]
    yield "down", "mlp.down_proj", mlp["down_proj"]


def share(array) -> torch.Tensor:
    """A torch tensor over the memory of an evaluated MLX array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable": nothing here writes to it
        return torch.from_numpy(np.asarray(array))


# ---------------------------------------------------------------- pieces with a gradient of their own


class _Linear(torch.autograd.Function):
    """`x [T, in] @ weight^T` for a group of linear layers side by side; gradients go to each layer's own parameters.

    `parts` are (start, stop, kind, scale, effective norm) of the group's outputs; `parameters` follow in that order:
    LoRA A and B, DoRA A, B and m, or the full weight. With `wide` the result is float32, else of the weight's dtype.
    """

    @staticmethod
    def forward(ctx, x, weight, wide, parts, *parameters):
        ctx.parts, ctx.parameters, ctx.weight, ctx.came = parts, parameters, weight, x.dtype
        x = x.to(weight.dtype)
        y = x @ weight.T
        y = y.float() if wide else y
        ctx.dora = any(kind == "dora" for _, _, kind, *_ in parts)
        ctx.save_for_backward(x, y) if ctx.dora else ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, dtype = ctx.saved_tensors[0], ctx.weight.dtype
        dy_low = dy.to(dtype)
        dx = (dy_low @ ctx.weight).to(ctx.came) if ctx.needs_input_grad[0] else None
        gradients, at = [], 0
        low = [(p, ctx.parameters[i]) for p, i in _first_parameters(ctx.parts) if p[2] in ("lora", "dora")]
        inner = x @ torch.cat([a for _, a in low], dim=1).to(dtype) if low else None  # x A of all parts at once
        column, thin, thin_gradients = 0, [], []
        for start, stop, kind, scale, norm in ctx.parts:
            if kind is None:
                continue
            d = dy_low[:, start:stop]
            if kind == "full":
                gradients.append((d.T @ x).float())
                at += 1
                continue
            a, b = ctx.parameters[at : at + 2]
            rank = a.shape[1]
            if kind == "dora":
                m = ctx.parameters[at + 2]
                dm = (
                    torch.einsum("tj,tj->j", dy[:, start:stop].float(), ctx.saved_tensors[1][:, start:stop].float()) / m
                )
                d = d * (m / norm).to(dtype)
            thin.append(d @ b.T.to(dtype))
            db = (inner[:, column : column + rank].T @ d).float().mul_(scale)
            column += rank
            thin_gradients.append(len(gradients))
            gradients += [None, db] + ([dm] if kind == "dora" else [])
            at += 3 if kind == "dora" else 2
        if thin:
            together = (x.T @ torch.cat(thin, dim=1)).float()  # every dA of the group at once
            column = 0
            for index, t, (part, _) in zip(thin_gradients, thin, low):
                gradients[index] = together[:, column : column + t.shape[1]] * part[3]
                column += t.shape[1]
        return (dx, None, None, None, *gradients)


def _first_parameters(parts):
    at = 0
    for part in parts:
        if part[2] is None:
            continue
        yield part, at
        at += {"lora": 2, "dora": 3, "full": 1}[part[2]]


class _Norm(torch.autograd.Function):
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


class _Gated(torch.autograd.Function):
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


class _Rotate(torch.autograd.Function):
    """RoPE on `x [T, heads, d]`, halves paired; the gradient is the rotation backwards."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, -sin), None, None


def _rotate(x, cos, sin):
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)
    return out


class _Attend(torch.autograd.Function):
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
    """`a^T b` of `[K, n, m]` and `[K, n, d]`. torch's bmm copies a transposed factor, its product of two matrices does
    not, so a single key-value head goes that way."""
    return (b[0].T @ a[0]).T[None] if a.shape[0] == 1 else a.transpose(-1, -2) @ b


def _fold(x, kv: int, r: int):
    """`[T, kv * r, n] -> [kv, r * T, n]`: the query heads of one key-value head stand below each other."""
    t, _, n = x.shape
    return x.reshape(t, kv, r, n).permute(1, 2, 0, 3).reshape(kv, r * t, n)


def _unfold(x, r: int):
    """`[kv, r * T, n] -> [T, kv * r * n]`."""
    kv, _, n = x.shape
    return x.reshape(kv, r, -1, n).permute(2, 0, 1, 3).reshape(-1, kv * r * n)


class _RowAttend(torch.autograd.Function):
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


class _Where:
    """Where the own tokens of the rows lie in one kind of layer, and what they see.

    Folded is `[kv, r * T, n]`: the query heads of one key-value head stand below each other. Spread is the same by
    rows, `[rows, kv, r * width, n]`, with padding.
    """

    def __init__(self, slots, rows: int, width: int, kv: int, r: int, prefix_bias, own_bias):
        self.slots, self.rows, self.width, self.kv, self.r = slots, rows, width, kv, r
        self.prefix_bias, self.own_bias = prefix_bias, own_bias

    def fold(self, x):
        """`[T, kv * r, n]` -> folded."""
        return _fold(x, self.kv, self.r)

    def unfold(self, x):
        """Folded -> `[T, kv * r * n]`."""
        return _unfold(x, self.r)

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


def _pull(z, part):
    """`z [N, chunk] @ part [chunk, hidden]` in the dtype of `part`, as float32."""
    return (z.to(part.dtype) @ part).float()


class _Entropy(torch.autograd.Function):
    """Sum of the cross-entropy of the first rows of `h [N, hidden]` against `targets [<= N]`, over a table
    `[vocabulary, hidden]`, in chunks. What `h` has behind the targets is padding and gets no gradient.

    With `sample` (see `_Words`) the sum over the vocabulary in it is an estimate from the pieces that `sample` draws.
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


class _Words:
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


# ---------------------------------------------------------------- layout of a batch


@dataclass
class _Layout:
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
    def of(cls, batch) -> _Layout:
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


def _bias(queries, keys, window: int | None):
    """0 where a key's position is visible from a query's, -inf elsewhere; None where everything is."""
    hidden = keys[None] > queries[:, None]
    if window:
        hidden |= queries[:, None] - keys[None] >= window
    return torch.zeros(hidden.shape).masked_fill_(hidden, -math.inf) if hidden.any() else None


# ---------------------------------------------------------------- the engine


class _Adapted:
    """A group of linear layers: effective weight, and the trainable parameters behind each part."""

    def __init__(self, prefix: str, modules: list, dtype):
        self.parts, self.sources = [], []
        start = 0
        for name, module in modules:
            lora = "lora_a" in module
            frozen = share((module.linear if lora else module).weight)
            stop = start + frozen.shape[0]
            kind, scale = None, 1.0
            if lora:
                kind, scale = "dora" if "m" in module else "lora", float(module.scale)
            elif "weight" in module.trainable_parameters():
                kind = "full"
            path = f"{prefix}.{name}"
            names = {
                "lora": [f"{path}.lora_a", f"{path}.lora_b"],
                "dora": [f"{path}.lora_a", f"{path}.lora_b", f"{path}.m"],
                "full": [f"{path}.weight"],
                None: [],
            }[kind]
            self.sources.append((start, stop, kind, scale, frozen, names))
            start = stop
        alone = len(self.sources) == 1 and self.sources[0][2] in (None, "full") and dtype == torch.float32
        self.weight = None if alone else torch.empty(start, self.sources[0][4].shape[1], dtype=dtype)
        if not alone:
            for start, stop, kind, _, frozen, _ in self.sources:
                if kind is None:
                    self.weight[start:stop] = frozen
        self.alone = alone
        self.trained = any(kind for _, _, kind, *_ in self.sources)

    def prepare(self, parameters: dict) -> None:
        """Form the effective weight of this step from the parameters' present values."""
        self.parts, self.parameters = [], []
        for start, stop, kind, scale, frozen, names in self.sources:
            values = [parameters[n] for n in names]
            norm = None
            if kind == "full":
                if self.alone:
                    self.weight = values[0].detach()
                else:
                    self.weight[start:stop] = values[0].detach()
            elif kind is None:
                if self.alone:
                    self.weight = frozen
            else:
                a, b = values[0].detach(), values[1].detach()
                exact = self.weight.dtype == torch.float32
                part = self.weight[start:stop] if exact else torch.empty_like(frozen)
                torch.addmm(frozen, b.T, a.T, alpha=scale, out=part)
                if kind == "dora":
                    norm = torch.linalg.vector_norm(part, dim=1)
                    part *= (values[2].detach() / norm)[:, None]
                if not exact:
                    self.weight[start:stop] = part
            self.parts.append((start, stop, kind, scale, norm))
            self.parameters += values

    def __call__(self, x, wide: bool = True):
        return _Linear.apply(x, self.weight, wide, self.parts, *self.parameters)


class TorchEngine:
    """Loss and gradients of an MLX model (plain, LoRA, DoRA or full) by torch on the CPU.

    In float32; with `precision="bfloat16"` the factors of every product are rounded to bfloat16 (products alone:
    sums, norms, the residual stream, adapters and gradients stay float32), which processors with AVX512-BF16 or AMX
    multiply several times faster. With `softmax="sampled"` and the `learned` words of all rows to come, `gradients`
    takes the loss over a sample of the vocabulary (see `_Words`); `loss` is always exact.
    """

    name = "torch"

    def __init__(self, model, config=None, learned: Iterable[int] = ()):
        half = config is not None and config.precision == "bfloat16"
        reason = why_not(model) or (why_not_bfloat16() if half else None)
        if reason:
            raise ValueError(f"engine torch cannot be used: {reason}")
        mx = blas.mlx()
        mx.eval(model.parameters())
        self.model, self.steps = model, 0
        args = model.args
        self.dtype = torch.bfloat16 if half else torch.float32
        self.layers = []
        for i, layer in enumerate(model.layers):
            groups: dict[str, list] = {}
            for group, name, module in _linears(layer):
                groups.setdefault(group, []).append((name, module))
            self.layers.append({g: _Adapted(f"model.layers.{i}", m, self.dtype) for g, m in groups.items()})
        self.first = next((i for i, groups in enumerate(self.layers) if any(g.trained for g in groups.values())), 0)
        self._below: dict = {}  # prefix -> what the frozen layers below the first adapter make of it
        self.embedding = share(model.model.embed_tokens.weight)
        self.table = self.embedding if model.tie_word_embeddings else share(model.lm_head.weight)
        self.table = self.table.to(self.dtype)
        self.words = _Words(self.table, learned) if config is not None and config.softmax == "sampled" else None
        # MLX multiplies by the square root rounded to bfloat16
        self.embed_scale = mx.array(args.hidden_size**0.5, mx.bfloat16).item()
        self.kv, self.d = args.num_key_value_heads, args.head_dim
        self.r = args.num_attention_heads // self.kv

    # -- what the trainer calls

    def loss(self, batch) -> tuple[float, int]:
        """(sum of the cross-entropy, learned tokens)."""
        with torch.no_grad():
            parameters, _ = self._parameters(False)
            return self._forward(batch, parameters).item(), len(batch.targets)

    def gradients(self, batch):
        """(sum of the cross-entropy, tree of the sum's gradients as MLX arrays)."""
        from mlx.utils import tree_unflatten

        mx = blas.mlx()
        parameters, trainable = self._parameters(True)
        total = self._forward(batch, parameters, self.words)
        total.backward()
        out = []
        for name in trainable:
            gradient = parameters[name].grad
            out.append((name, mx.array((torch.zeros_like(parameters[name]) if gradient is None else gradient).numpy())))
        mx.eval([g for _, g in out])
        self.steps += 1
        if self.steps % TRIM_EVERY == 0:
            give_memory_back()
        return total.item(), tree_unflatten(out)

    # -- the model

    def _parameters(self, gradients: bool) -> tuple[dict, list[str]]:
        from mlx.utils import tree_flatten

        mx = blas.mlx()
        trainable = tree_flatten(self.model.trainable_parameters())
        mx.eval([v for _, v in trainable])
        parameters = {name: share(value).requires_grad_(gradients) for name, value in trainable}
        return parameters, [name for name, _ in trainable]

    def _rope(self, base: float, positions):
        """cos and sin `[T, 1, d/2]` for packed tokens."""
        inverse = (base ** (-torch.arange(0, self.d, 2, dtype=torch.float64) / self.d)).float()
        angles = positions.float()[:, None] * inverse
        return angles.cos()[:, None], angles.sin()[:, None]

    def _forward(self, batch, parameters, words=None):
        args, layout = self.model.args, _Layout.of(batch)
        rope = {
            True: self._rope(args.rope_local_base_freq, layout.positions),
            False: self._rope(args.rope_theta, layout.positions),
        }
        biases = {window: self._make_biases(layout, window) for window in (args.sliding_window, None)}
        h, P = self.embedding[layout.ids] * self.embed_scale, layout.prefix

        def run(i, h, part, known=None):
            layer, groups = self.model.layers[i], self.layers[i]
            for group in groups.values():
                group.prepare(parameters)
            sliding = layer.self_attn.is_sliding
            turns = [turn[part] for turn in rope[sliding]]
            bias = biases[args.sliding_window if sliding else None]
            return self._layer(i, layer, groups, h, layout, turns, bias, parameters, known)

        if self.first and P:
            with torch.no_grad():
                below, kept = self._below.get(batch.prefix) or (h[:P], [])
                for i in range(len(kept), self.first):
                    below, keys_values = run(i, below, slice(0, P))
                    kept.append(keys_values)
                rows = h[P:]
                for i in range(self.first):
                    rows, _ = run(i, rows, slice(P, None), kept[i])
                h = torch.cat([below, rows])
            if batch.prefix not in self._below and len(self._below) >= MOST_PREFIXES:
                self._below.clear()
            self._below[batch.prefix] = below, kept
        for i in range(self.first if P else 0, len(self.layers)):
            h, _ = run(i, h, slice(None))
        h = self._norm(h, "model.norm", self.model.model.norm, parameters)
        return _Entropy.apply(h, self.table, layout.targets, words)

    def _norm(self, x, name: str, module, parameters):
        weight = parameters.get(f"{name}.weight")
        return _Norm.apply(x, share(module.weight) if weight is None else weight, module.eps)

    def _layer(self, i, layer, groups, h, layout, rope, biases, parameters, known):
        """Layer `i` over `h`: the prefix, the rows behind it, or both; also the prefix's (keys, values).

        `known` are the prefix's keys and values where `h` holds the rows alone.
        """
        name, last = f"model.layers.{i}", i == len(self.layers) - 1
        P = 0 if known else layout.prefix
        attn, heads = layer.self_attn, self.kv * self.r

        def norm(x, part, module):
            return self._norm(x, f"{name}.{part}", module, parameters)

        x = norm(h, "input_layernorm", layer.input_layernorm)
        both = groups["qkv"](x)
        q, k, v = both.split([heads * self.d, self.kv * self.d, self.kv * self.d], dim=-1)
        q, k = q.reshape(-1, heads, self.d), k.reshape(-1, self.kv, self.d)
        v = v.reshape(-1, self.kv, self.d)
        scaled = [turn * attn.scale for turn in rope]  # a rotation by these scales as well
        q = _Rotate.apply(norm(q, "self_attn.q_norm", attn.q_norm), *scaled)
        k = _Rotate.apply(norm(k, "self_attn.k_norm", attn.k_norm), *rope)
        pieces = []
        if P and not last:
            pieces.append(self._prefix_attention(q[:P], k[:P], v[:P], biases))
        keys, values = known or (k[:P], v[:P])
        if len(h) > P:
            low = biases["low"]
            pieces.append(_RowAttend.apply(q[P:], k[P:], v[P:], keys[low:], values[low:], biases["rows"], self.dtype))
        attended = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if last:
            attended, h = attended[layout.learned], h[P:][layout.learned]
        h = h + norm(groups["out"](attended), "post_attention_layernorm", layer.post_attention_layernorm)
        x = norm(h, "pre_feedforward_layernorm", layer.pre_feedforward_layernorm)
        x = groups["down"](_Gated.apply(groups["gate_up"](x, wide=False)))
        return h + norm(x, "post_feedforward_layernorm", layer.post_feedforward_layernorm), (keys, values)

    def _make_biases(self, layout, window) -> dict:
        """Masks of one kind of layer: for each block of the prefix, and for the rows."""
        P, S = layout.prefix, layout.width
        out: dict = {"blocks": []}
        for a in range(0, P, BLOCK):
            b = min(a + BLOCK, P)
            low = max(0, a - window + 1) if window else 0
            bias = _bias(torch.arange(a, b), torch.arange(low, b), window)
            out["blocks"].append((a, b, low, None if bias is None else bias.repeat(self.r, 1)))
        low = out["low"] = min(P, max(0, P - window + 1)) if window else 0
        prefix = _bias(layout.positions[P:], torch.arange(low, P), window)
        own = _bias(torch.arange(S), torch.arange(S), window)
        out["rows"] = _Where(layout.slots, layout.rows, S, self.kv, self.r, prefix, 0.0 if own is None else own)
        return out

    def _prefix_attention(self, q, k, v, biases):
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        pieces = []
        for a, b, low, bias in biases["blocks"]:
            o = _Attend.apply(_fold(q[a:b], self.kv, self.r), k[:, low:b], v[:, low:b], bias, self.dtype)
            pieces.append(_unfold(o, self.r))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
