"""Decoding many rows behind one prefix, by MLX."""

from __future__ import annotations

from ..core import blas
from ..models.gemma3 import decoder_layer
from .mlx_forward import Prefix, RowLayers, causal_mask, embed
from .protocols import Decoder


class MlxDecoder(Decoder):
    """A `Decoder` by MLX. Keys and values of the rows' own tokens `[B, K, columns, d]`, and `hidden` `[B, hidden]`.

    A row's prompt fills columns from 0; what it says is appended behind the longest prompt, so columns between are
    holes, marked by position -1. Positions, not columns, decide what is visible.
    """

    def __init__(self, model, rows: list[list[int]], prefix: Prefix):
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
        layers, h = DecodingLayers(self, offset, queries), embed(self.model, ids)
        for i in range(len(self.model.layers)):
            h = decoder_layer(layers, i, h)
        return h

    def _finish(self, h) -> None:
        mx = blas.mlx()
        self.hidden = self.model.model.norm(h)
        mx.eval(self.hidden, self.keys, self.values, self.positions, self.next_position)


class DecodingLayers(RowLayers):
    """One step of an `MlxDecoder`: new tokens at positions `queries [B, S]` behind the kept ones."""

    def __init__(self, decoder: MlxDecoder, offset, queries):
        super().__init__(decoder.model, decoder.prefix, queries, offset)
        self.decoder = decoder

    def own_keys_values(self, layer, k, v):
        mx, keys, values = blas.mlx(), self.decoder.keys, self.decoder.values
        if layer == len(keys):  # the rows' prompts
            keys.append(k)
            values.append(v)
        else:
            keys[layer] = mx.concatenate([keys[layer], k], axis=2)
            values[layer] = mx.concatenate([values[layer], v], axis=2)
        return keys[layer], values[layer]

    def mask(self, low, window):
        mx, own = blas.mlx(), self.decoder.positions
        shared = mx.arange(low, self.prefix.length).astype(own.dtype)
        keys = mx.concatenate([mx.broadcast_to(shared, (len(self.queries), len(shared))), own], axis=1)
        mask = causal_mask(self.queries, keys, window) & (keys >= 0)[:, None, :]
        return mask[:, None, None]
