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
        positions = mx.where(real, prefix.length + columns[None], -1)
        self.layers = DecodingLayers(model, prefix, positions)
        h = self._forward(ids, prefix.length, mx.broadcast_to(prefix.length + columns, (len(rows), width)))
        self._finish(h[mx.arange(len(rows)), mx.array(lengths) - 1])

    def keep(self, rows: list[int]) -> None:
        """Drop the rows that have ended."""
        index, layers = blas.mlx().array(rows), self.layers
        layers.keys, layers.values = [k[index] for k in layers.keys], [v[index] for v in layers.values]
        layers.positions, self.next_position = layers.positions[index], self.next_position[index]

    def step(self, tokens: list[int]) -> None:
        """Append one token to every row."""
        mx = blas.mlx()
        at = self.next_position
        self.layers.positions = mx.concatenate([self.layers.positions, at[:, None]], axis=1)
        h = self._forward(mx.array(tokens, dtype=mx.int32)[:, None], at, at[:, None])
        self.next_position = at + 1
        self._finish(h[:, 0])

    def _forward(self, ids, offset, queries):
        """Hidden states of `ids [B, S]` at positions `queries [B, S]`; the new keys and values are kept."""
        self.layers.move_to(offset, queries)
        h = embed(self.model, ids)
        for i in range(len(self.model.layers)):
            h = decoder_layer(self.layers, i, h)
        return h

    def _finish(self, h) -> None:
        self.hidden, layers = self.model.model.norm(h), self.layers
        blas.mlx().eval(self.hidden, layers.keys, layers.values, layers.positions, self.next_position)


class DecodingLayers(RowLayers):
    """The operations of an `MlxDecoder`, with what it keeps: `keys` and `values` `[B, K, columns, d]` of each layer,
    and the `positions` `[B, columns]` of the tokens in them.
    """

    def __init__(self, model, prefix: Prefix, positions):
        super().__init__(model, prefix, None, None)
        self.keys, self.values, self.positions = [], [], positions

    def move_to(self, offset, queries) -> None:
        """Go on with new tokens at positions `queries [B, S]`, of which `offset` is the first."""
        self.offset, self.queries, self.masks = offset, queries, {}

    def own_keys_values(self, layer, k, v):
        mx = blas.mlx()
        if layer == len(self.keys):  # the rows' prompts
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[layer] = mx.concatenate([self.keys[layer], k], axis=2)
            self.values[layer] = mx.concatenate([self.values[layer], v], axis=2)
        return self.keys[layer], self.values[layer]

    def mask(self, low, window):
        mx = blas.mlx()
        shared = mx.arange(low, self.prefix.length).astype(self.positions.dtype)
        keys = mx.concatenate([mx.broadcast_to(shared, (len(self.queries), len(shared))), self.positions], axis=1)
        mask = causal_mask(self.queries, keys, window) & (keys >= 0)[:, None, :]
        return mask[:, None, None]
