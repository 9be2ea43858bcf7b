"""The decoder of `generate.MlxGenerator` on a CPU, by torch's kernels over the memory of the MLX model, in float32.

As in `torch_step`: MLX runs softmax, norms and copies on one thread of a CPU. Effective weights (base and adapters) are
formed once for all tokens. Shapes: `B` rows, `S` new tokens of each, `P` prefix, `K` key-value heads, `r` query heads
for each, `d` head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .torch_ops import fold_heads, rotate_halves
from .torch_step import TorchEngine
from .torch_support import as_torch

HIDDEN = -1e30  # not infinite: a padded token may see nothing, and its numbers must stay finite


GROW = 64  # columns added to the keys and values when they are full


class TorchWeights:
    """Effective weights of an MLX model as it is now; for many `TorchDecoder`s."""

    def __init__(self, model):
        self.model, self.args = model, model.args
        engine = TorchEngine(model)
        self.kv, self.r, self.d = engine.kv, engine.r, engine.d
        self.rope, self.embedding, self.embed_scale = engine._rope, engine.embedding, engine.embed_scale
        parameters, _ = engine._parameters(False)
        self.layers = []
        for layer, groups in zip(model.layers, engine.layers):
            for group in groups.values():
                group.prepare(parameters)
            self.layers.append((layer, {name: group.weight for name, group in groups.items()}))


class TorchDecoder:
    """Keys and values of the rows' own tokens, and the `hidden` state `[B, H]` of each row's last token, normed.

    `prefix` is the `forward.Prefix` that all rows follow. Columns and positions as in `generate.MlxDecoder`: holes are
    marked by position -1, and positions decide what is visible.
    """

    def __init__(self, weights: TorchWeights, rows: list[list[int]], prefix):
        self.weights, self.length = weights, prefix.length
        self.shared = [(as_torch(k)[0], as_torch(v)[0]) for k, v in zip(prefix.keys, prefix.values)]  # [K, P, d]
        lengths = torch.tensor([len(r) for r in rows])
        width, kv, d = int(lengths.max()), weights.kv, weights.d
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        columns = torch.arange(width)
        self.next_position = self.length + lengths
        self.positions = torch.where(columns < lengths[:, None], self.length + columns, -1)  # [B, columns]
        self.keys = [torch.empty(len(rows), kv, width + GROW, d) for _ in weights.layers]
        self.values = [torch.empty_like(k) for k in self.keys]
        h = self._forward(ids, (self.length + columns).expand(len(rows), -1))
        self._finish(h.view(len(rows), width, -1)[torch.arange(len(rows)), lengths - 1])

    def keep(self, rows: list[int]) -> None:
        """Drop the rows that have ended."""
        self.keys, self.values = [k[rows] for k in self.keys], [v[rows] for v in self.values]
        self.positions, self.next_position = self.positions[rows], self.next_position[rows]

    def step(self, tokens: list[int]) -> None:
        """Append one token to every row."""
        at = self.next_position[:, None]
        self.positions = torch.cat([self.positions, at], dim=1)
        if self.positions.shape[1] > self.keys[0].shape[2]:
            self.keys, self.values = ([F.pad(x, (0, 0, 0, GROW)) for x in xs] for xs in (self.keys, self.values))
        h = self._forward(torch.tensor(tokens)[:, None], at)
        self.next_position = self.next_position + 1
        self._finish(h)

    @torch.no_grad()
    def _forward(self, ids, queries):
        """Hidden states `[B * S, H]` of `ids [B, S]` at positions `queries [B, S]`; their keys and values are kept."""
        w, args, (B, S) = self.weights, self.weights.args, ids.shape
        stop, flat = self.positions.shape[1], queries.reshape(-1)
        rope = {True: w.rope(args.rope_local_base_freq, flat), False: w.rope(args.rope_theta, flat)}
        biases = {window: self.attention_bias(queries, window) for window in (args.sliding_window, None)}
        h = w.embedding[ids.reshape(-1)] * w.embed_scale
        for i, (layer, groups) in enumerate(w.layers):
            attn = layer.self_attn
            turns = rope[attn.is_sliding]
            both = _norm(h, layer.input_layernorm) @ groups["qkv"].T
            q, k, v = both.view(B * S, -1, w.d).split([w.kv * w.r, w.kv, w.kv], dim=1)
            q = rotate_halves(_norm(q, attn.q_norm), *(turn * attn.scale for turn in turns))
            for kept, new in ((self.keys[i], rotate_halves(_norm(k, attn.k_norm), *turns)), (self.values[i], v)):
                kept[:, :, stop - S : stop] = new.reshape(B, S, w.kv, w.d).transpose(1, 2)
            bias, low = biases[args.sliding_window if attn.is_sliding else None]
            attended = self._attend(i, q, bias, low, stop, B, S)
            h = h + _norm(attended @ groups["out"].T, layer.post_attention_layernorm)
            gate, up = (_norm(h, layer.pre_feedforward_layernorm) @ groups["gate_up"].T).chunk(2, dim=-1)
            x = (F.gelu(gate, approximate="tanh") * up) @ groups["down"].T
            h = h + _norm(x, layer.post_feedforward_layernorm)
        return h

    def _attend(self, i: int, q, bias, low: int, stop: int, B: int, S: int):
        """Attention of `q [B * S, K * r, d]` (scaled) over the visible prefix, in one product, and each row's own."""
        w = self.weights
        shared, shared_values = (x[:, low:] for x in self.shared[i]) if self.shared else (None, None)
        keys, values = self.keys[i][:, :, :stop], self.values[i][:, :, :stop]
        own = q.view(B, S, w.kv, w.r, w.d).permute(0, 2, 3, 1, 4).reshape(B, w.kv, w.r * S, w.d)
        scores = own @ keys.transpose(-1, -2)
        if shared is not None:
            folded = (fold_heads(q, w.kv, w.r) @ shared.transpose(-1, -2)).view(w.kv, w.r, B, S, -1)
            scores = torch.cat([folded.permute(2, 0, 1, 3, 4).reshape(B, w.kv, w.r * S, -1), scores], dim=-1)
        scores.view(B, w.kv, w.r, S, -1).add_(bias[:, None, None])
        p = torch.softmax(scores, dim=-1)
        before = p.shape[-1] - stop
        out = p[..., before:] @ values
        if before:
            folded = p[..., :before].transpose(0, 1).reshape(w.kv, B * w.r * S, before) @ shared_values
            out += folded.view(w.kv, B, w.r * S, w.d).transpose(0, 1)
        return out.view(B, w.kv, w.r, S, w.d).permute(0, 3, 1, 2, 4).reshape(B * S, -1)

    def attention_bias(self, queries, window: int | None):
        """0 where a key is visible, else `HIDDEN`, `[B, S, keys]`; and the first position of the prefix in it."""
        low = 0
        if window:
            low = max(0, min(self.length, int(queries.min()) - window + 1))
        shared = torch.arange(low, self.length).expand(len(queries), -1)
        keys = torch.cat([shared, self.positions], dim=1)[:, None]
        hidden = (keys > queries[..., None]) | (keys < 0)
        if window:
            hidden |= queries[..., None] - keys >= window
        return torch.zeros(hidden.shape).masked_fill_(hidden, HIDDEN), low

    def _finish(self, h) -> None:
        self.hidden = _norm(h, self.weights.model.model.norm)


def _norm(x, module):
    """RMS norm over the last axis, times `1 + weight`."""
    weight = as_torch(module.weight) + 1
    return F.rms_norm(x, weight.shape, weight, module.eps)
