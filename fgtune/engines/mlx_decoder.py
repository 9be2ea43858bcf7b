"""Decoding many rows behind one prefix, by MLX."""

from __future__ import annotations

from ..core import blas
from . import mlx_forward as forward


class MlxDecoder:
    """Keys and values of the rows' own tokens, and the `hidden` state `[B, H]` of each row's last token, normed.

    A row's prompt fills columns from 0; what it says is appended behind the longest prompt, so columns between are
    holes, marked by position -1. Positions, not columns, decide what is visible.
    """

    def __init__(self, model, rows: list[list[int]], prefix):
        mx = blas.mlx()
        self.model, self.prefix = model, prefix
        lengths = [len(r) for r in rows]
        width = max(lengths)
        ids = mx.array([r + [0] * (width - len(r)) for r in rows], dtype=mx.int32)
        columns = mx.arange(width)
        self.next_position = prefix.length + mx.array(lengths, dtype=mx.int32)  # [B]
        real = columns[None] < mx.array(lengths)[:, None]
        self.positions = mx.where(real, prefix.length + columns[None], -1)  # [B, columns]
        self.keys, self.values = [], []
        h = self._forward(ids, prefix.length, mx.broadcast_to(prefix.length + columns, (len(rows), width)))
        self._finish(h[mx.arange(len(rows)), mx.array(lengths) - 1])

    def keep(self, rows: list[int]) -> None:
        """Drop the rows that have ended."""
        mx = blas.mlx()
        index = mx.array(rows)
        self.keys, self.values = [k[index] for k in self.keys], [v[index] for v in self.values]
        self.positions, self.next_position = self.positions[index], self.next_position[index]

    def step(self, tokens: list[int]) -> None:
        """Append one token to every row."""
        mx = blas.mlx()
        at = self.next_position
        self.positions = mx.concatenate([self.positions, at[:, None]], axis=1)
        h = self._forward(mx.array(tokens, dtype=mx.int32)[:, None], at, at[:, None])
        self.next_position = at + 1
        self._finish(h[:, 0])

    def _forward(self, ids, offset, queries):
        """Hidden states of `ids [B, S]` at positions `queries [B, S]`; the new keys and values are kept."""
        mx = blas.mlx()
        model, prefix = self.model, self.prefix
        h = forward.embed(model, ids)
        first, masks = not self.keys, {}
        for i, layer in enumerate(model.layers):
            attn, window = layer.self_attn, forward.window_of(model, layer)
            x = layer.input_layernorm(h)
            q, (keys, values) = forward._queries(attn, x, offset), forward._keys_values(attn, x, offset)
            if first:
                self.keys.append(keys)
                self.values.append(values)
            else:
                keys = self.keys[i] = mx.concatenate([self.keys[i], keys], axis=2)
                values = self.values[i] = mx.concatenate([self.values[i], values], axis=2)
            parts, low = [(keys, values)], prefix.length
            if prefix.length:
                shared, shared_values, low = forward.visible_prefix(prefix, i, window, prefix.length)
                if shared.shape[2]:
                    parts.insert(0, (shared, shared_values))
            if window not in masks:
                masks[window] = self._mask(queries, low, window)
            h = forward._rest_of_layer(layer, h, forward._attend(q, parts, masks[window]))
        return h

    def _mask(self, queries, low: int, window: int | None):
        mx = blas.mlx()
        shared = mx.broadcast_to(mx.arange(low, self.prefix.length), (queries.shape[0], self.prefix.length - low))
        keys = mx.concatenate([shared.astype(self.positions.dtype), self.positions], axis=1)
        mask = forward.causal_mask(queries, keys, window) & (keys >= 0)[:, None, :]
        return mask[:, None, None]

    def _finish(self, h) -> None:
        mx = blas.mlx()
        self.hidden = self.model.model.norm(h)
        mx.eval(self.hidden, self.keys, self.values, self.positions, self.next_position)
