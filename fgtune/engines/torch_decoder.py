"""Decoding many rows behind one prefix on a CPU, by torch's kernels over the memory of the MLX model, in float32.

As in `torch_step`: MLX runs softmax, norms and copies on one thread of a CPU. Effective weights (base and adapters) are
formed once for all tokens. Shapes: `B` rows, `S` new tokens of each, `P` prefix, `K` key-value heads, `r` query heads
for each, `d` head size.
"""

from __future__ import annotations

from operator import attrgetter

import torch
import torch.nn.functional as F

from ..models.gemma3 import NORMS, QUERY_KEY_VALUE, LayerOperations, decoder_layer
from .protocols import Decoder
from .torch_ops import fold_heads, rotary_tables, rotate_halves
from .torch_step import TorchEngine
from .torch_support import as_torch

MASKED = -1e30  # not infinite: a padded token may see nothing, and its numbers must stay finite
GROW = 64  # columns added to the keys and values when they are full


class TorchWeights:
    """Effective weights of an MLX model as it is now; for many `TorchDecoder`s."""

    def __init__(self, model):
        engine = TorchEngine(model)
        self.gemma, self.embedding = engine.gemma, engine.embedding
        self.embedding_scale = float(engine.gemma.embedding_scale)
        parameters, self.linears = engine.trainable_parameters(), []
        for groups in engine.linears:
            for group in groups.values():
                group.prepare(parameters)
            self.linears.append({names: group.weight for names, group in groups.items()})
        self.norms = [{name: RMSNormWeight(attrgetter(name)(layer)) for name in NORMS} for layer in model.layers]
        self.final_norm = RMSNormWeight(model.model.norm)


class RMSNormWeight:
    """RMS norm over the last axis, times `1 + weight` of an MLX module as it is now."""

    def __init__(self, module):
        self.gain, self.eps = as_torch(module.weight) + 1, module.eps

    def __call__(self, x):
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


class TorchDecoder(Decoder):
    """A `Decoder` by torch. Keys and values of the rows' own tokens `[B, K, columns, d]`, and `hidden` `[B, hidden]`.

    `prefix` is the `mlx_forward.Prefix` that all rows follow. Columns and positions as in `MlxDecoder`: holes are
    marked by position -1, and positions decide what is visible.
    """

    def __init__(self, weights: TorchWeights, rows: list[list[int]], prefix):
        self.weights, self.length = weights, prefix.length
        self.shared = [(as_torch(k)[0], as_torch(v)[0]) for k, v in zip(prefix.keys, prefix.values)]  # [K, P, d]
        lengths = torch.tensor([len(r) for r in rows])
        width, kv, d = int(lengths.max()), weights.gemma.kv_heads, weights.gemma.head_dim
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
        columns = torch.arange(width)
        self.next_position = self.length + lengths
        self.positions = torch.where(columns < lengths[:, None], self.length + columns, -1)  # [B, columns]
        self.keys = [torch.empty(len(rows), kv, width + GROW, d) for _ in weights.linears]
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
        """Hidden states `[B * S, hidden]` of `ids [B, S]` at positions `queries [B, S]`; keys and values are kept."""
        layers = DecodingLayers(self, queries)
        h = self.weights.embedding[ids.reshape(-1)] * self.weights.embedding_scale
        for i in range(len(self.weights.linears)):
            h = decoder_layer(layers, i, h)
        return h

    def attention_bias(self, queries, window: int | None):
        """0 where a key is visible, else `MASKED`, `[B, S, keys]`; and the first position of the prefix in it."""
        low = 0
        if window:
            low = max(0, min(self.length, int(queries.min()) - window + 1))
        shared = torch.arange(low, self.length).expand(len(queries), -1)
        keys = torch.cat([shared, self.positions], dim=1)[:, None]
        masked = (keys > queries[..., None]) | (keys < 0)
        if window:
            masked |= queries[..., None] - keys >= window
        return torch.zeros(masked.shape).masked_fill_(masked, MASKED), low

    def _finish(self, h) -> None:
        self.hidden = self.weights.final_norm(h)


class DecodingLayers(LayerOperations):
    """The operations of a layer over new tokens `[B * S, ...]` at positions `queries [B, S]`."""

    def __init__(self, decoder: TorchDecoder, queries):
        self.decoder, self.weights, self.config = decoder, decoder.weights, decoder.weights.gemma
        self.B, self.S = queries.shape
        self.rope, self.biases = {}, {}
        for kind, window in self.config.windows.items():
            tables = rotary_tables(self.config.rope[kind].theta, self.config.head_dim, queries.reshape(-1))
            self.rope[kind, False] = tables
            self.rope[kind, True] = [table * self.config.attention_scale for table in tables]
            self.biases[kind] = decoder.attention_bias(queries, window)

    def norm(self, layer, name, x):
        return self.weights.norms[layer][name](x)

    def project(self, layer, names, x):
        y = x @ self.weights.linears[layer][names].T
        if names != QUERY_KEY_VALUE:
            return (y,)
        queries, keys = (heads * self.config.head_dim for heads in (self.config.heads, self.config.kv_heads))
        return y.split([queries, keys, keys], dim=-1)

    def split_heads(self, x):
        return x.view(len(x), -1, self.config.head_dim)

    def rotate(self, layer, x, query):
        return rotate_halves(x, *self.rope[self.config.kinds[layer], query])

    def gated_gelu(self, both):
        gate, up = both.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up

    def add(self, stream, branch):
        return stream + branch

    def attend(self, layer, q, k, v):
        """Attention of `q [B * S, K * r, d]` over the visible prefix, in one product, and each row's own tokens."""
        (B, S), kv, r, d = (self.B, self.S), self.config.kv_heads, self.config.groups, self.config.head_dim
        bias, low = self.biases[self.config.kinds[layer]]
        keys, values = self._own_keys_values(layer, k, v)
        own = q.view(B, S, kv, r, d).permute(0, 2, 3, 1, 4).reshape(B, kv, r * S, d)
        scores = own @ keys.transpose(-1, -2)
        if self.decoder.shared:
            shared, shared_values = (x[:, low:] for x in self.decoder.shared[layer])
            folded = (fold_heads(q, kv, r) @ shared.transpose(-1, -2)).view(kv, r, B, S, -1)
            scores = torch.cat([folded.permute(2, 0, 1, 3, 4).reshape(B, kv, r * S, -1), scores], dim=-1)
        scores.view(B, kv, r, S, -1).add_(bias[:, None, None])
        p = torch.softmax(scores, dim=-1)
        before = p.shape[-1] - keys.shape[2]
        out = p[..., before:] @ values
        if before:
            folded = p[..., :before].transpose(0, 1).reshape(kv, B * r * S, before) @ shared_values
            out += folded.view(kv, B, r * S, d).transpose(0, 1)
        return out.view(B, kv, r, S, d).permute(0, 3, 1, 2, 4).reshape(B * S, -1)

    def _own_keys_values(self, layer: int, k, v):
        """Keys and values `[B, K, columns, d]` of the rows' own tokens; new ones are put behind earlier ones."""
        stop, found = self.decoder.positions.shape[1], []
        for kept, new in ((self.decoder.keys[layer], k), (self.decoder.values[layer], v)):
            kept[:, :, stop - self.S : stop] = new.reshape(self.B, self.S, -1, self.config.head_dim).transpose(1, 2)
            found.append(kept[:, :, :stop])
        return found
