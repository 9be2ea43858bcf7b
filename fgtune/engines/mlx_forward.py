"""Gemma 3's layers over a prefix that many rows share, with the modules of an mlx-lm model (LoRA, DoRA or plain).

The prefix runs once. Rows attend to its keys and values in one product for the whole batch, then to their own.
mlx-lm's `ConcatenateKVCache.make_mask` ignores `window_size` (0.29.1), so the masks are made here.
Shapes: `B` rows, `S` positions of a row, `P` of the prefix, `H` heads, `K` key-value heads, `d` head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter

from ..core import blas
from ..models.gemma3 import Gemma3Config, LayerOperations, decoder_layer, embedding_scale, keys_values


@dataclass
class Prefix:
    """Keys and values `[1, K, P, d]` of every layer for the `length` tokens that all rows begin with."""

    length: int = 0
    keys: list = field(default_factory=list)
    values: list = field(default_factory=list)

    def visible(self, layer: int, window: int | None):
        """(keys, values, position of the first): what tokens behind the prefix can see of it."""
        low = max(0, self.length - window + 1) if window else 0
        return self.keys[layer][:, :, low:], self.values[layer][:, :, low:], low


def embed(model, ids):
    """Scaled embeddings of `ids` (any shape)."""
    mx = blas.mlx()
    h = model.model.embed_tokens(ids)
    return h * mx.array(embedding_scale(model.args.hidden_size), h.dtype)


def head(model, h):
    """Logits of normed hidden states `[..., hidden]`."""
    return model.model.embed_tokens.as_linear(h) if model.tie_word_embeddings else model.lm_head(h)


def attention(q, parts, mask):
    """Softmax attention of `q [B, H, S, d]` (scaled) over `parts`, a list of (keys, values) `[B or 1, K, n, d]`.

    `mask` (True: visible) broadcasts to `[B, K, H/K, S, sum of n]`. A part of one row serves all rows by one product.
    """
    mx = blas.mlx()
    B, H, S, d = q.shape
    scores, sizes = [], []
    for keys, _ in parts:
        rows, K, n, _ = keys.shape
        r = H // K
        if rows == B:
            s = q.reshape(B, K, r * S, d) @ keys.swapaxes(-1, -2)
            s = s.reshape(B, K, r, S, n)
        else:
            folded = q.reshape(B, K, r * S, d).swapaxes(0, 1).reshape(1, K, B * r * S, d)
            s = (folded @ keys.swapaxes(-1, -2)).reshape(K, B, r, S, n).swapaxes(0, 1)
        scores.append(s)
        sizes.append(n)
    s = mx.concatenate(scores, axis=-1) if len(scores) > 1 else scores[0]
    if mask is not None:
        s = mx.where(mask, s, mx.array(mx.finfo(s.dtype).min, s.dtype))
    s = mx.softmax(s, axis=-1, precise=True)
    out, start = 0, 0
    for (_, values), n in zip(parts, sizes):
        rows, K = values.shape[:2]
        r = H // K
        p = s[..., start : start + n]
        start += n
        if rows == B:
            o = (p.reshape(B, K, r * S, n) @ values).reshape(B, H, S, d)
        else:
            folded = p.swapaxes(0, 1).reshape(1, K, B * r * S, n)
            o = (folded @ values).reshape(K, B, r * S, d).swapaxes(0, 1).reshape(B, H, S, d)
        out = out + o if start > n else o
    return out.transpose(0, 2, 1, 3).reshape(B, S, H * d)


def causal_mask(queries, keys, window: int | None):
    """`[..., S, n]`, True where a key's position is visible from a query's: not later, and inside the window."""
    q, k = queries[..., :, None], keys[..., None, :]
    mask = k <= q
    return mask & (q - k < window) if window else mask


class MlxLayers(LayerOperations):
    """The operations of a layer by the modules of an mlx-lm model. Heads are apart as `[B, heads, S, d]`.

    `offset` is the position of the first column: one number, or an array `[B]`.
    """

    def __init__(self, model, offset=0):
        self.layers, self.config, self.offset = model.layers, Gemma3Config.from_args(model.args), offset
        self._modules: dict = {}

    def module(self, layer: int, name: str):
        """The module `name` of a layer; looked up once, since decoding asks for each at every token."""
        key = layer, name
        if key not in self._modules:
            self._modules[key] = attrgetter(name)(self.layers[layer])
        return self._modules[key]

    def norm(self, layer, name, x):
        return self.module(layer, name)(x)

    def project(self, layer, names, x):
        return [self.module(layer, name)(x) for name in names]

    def split_heads(self, x):
        return x.reshape(*x.shape[:2], -1, self.config.head_dim).transpose(0, 2, 1, 3)

    def rotate(self, layer, x, query):
        turned = self.module(layer, "self_attn.rope")(x, offset=self.offset)
        return turned * self.config.attention_scale if query else turned

    def gated_gelu(self, gate, up):
        import mlx.nn as nn

        return nn.gelu_approx(gate) * up

    def add(self, stream, branch):
        return stream + branch


class PrefixLayers(MlxLayers):
    """The prefix itself, whose keys and values are put into `prefix`; `chunk` queries at a time look at keys."""

    def __init__(self, model, prefix: Prefix, chunk: int):
        super().__init__(model)
        self.prefix, self.chunk = prefix, chunk

    def attend(self, layer, q, k, v):
        mx = blas.mlx()
        self.keep(k, v)
        window, pieces = self.config.window(layer), []
        for a in range(0, self.prefix.length, self.chunk):
            b = min(a + self.chunk, self.prefix.length)
            low = max(0, a - window + 1) if window else 0
            mask = causal_mask(mx.arange(a, b), mx.arange(low, b), window)
            pieces.append(attention(q[:, :, a:b], [(k[:, :, low:b], v[:, :, low:b])], mask))
        return mx.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0]

    def keep(self, keys, values) -> None:
        """Put the next layer's keys and values into the prefix."""
        self.prefix.keys.append(keys)
        self.prefix.values.append(values)


class RowLayers(MlxLayers):
    """Rows `[B, S]` behind a prefix, each attending to what it sees of the prefix and to its own tokens."""

    def __init__(self, model, prefix: Prefix, queries, offset):
        """`queries` `[S]` or `[B, S]` are the positions of the rows' tokens."""
        super().__init__(model, offset)
        self.prefix, self.queries, self.masks = prefix, queries, {}

    def attend(self, layer, q, k, v):
        kind, window = self.config.kinds[layer], self.config.window(layer)
        parts, low = [self.own_keys_values(layer, k, v)], self.prefix.length
        if self.prefix.length:
            shared, shared_values, low = self.prefix.visible(layer, window)
            if shared.shape[2]:
                parts.insert(0, (shared, shared_values))
        if kind not in self.masks:
            self.masks[kind] = self.mask(low, window)
        return attention(q, parts, self.masks[kind])

    def own_keys_values(self, layer: int, k, v):
        """Keys and values of the rows' own tokens, with those that earlier steps have kept."""
        return k, v

    def mask(self, low: int, window: int | None):
        """What is visible of the prefix from position `low` on and of the own tokens, as `attention` takes it."""
        return causal_mask(self.queries, blas.mlx().arange(low, self.prefix.length + len(self.queries)), window)


def run_prefix(model, ids, chunk: int = 256) -> Prefix:
    """Run `ids [P]` once and keep every layer's keys and values; `chunk` queries at a time look at keys."""
    prefix = Prefix(int(ids.shape[0]))
    if not prefix.length:
        return prefix
    layers, h, last = PrefixLayers(model, prefix, chunk), embed(model, ids[None]), len(model.layers) - 1
    for i in range(last):
        h = decoder_layer(layers, i, h)
    layers.keep(*keys_values(layers, last, h))  # nothing reads the prefix's own output
    return prefix


def run_rows(model, ids, prefix: Prefix):
    """Hidden states `[B, S, hidden]` (before the final norm) of `ids [B, S]`, which follow the prefix.

    Rows are padded on the right: what stands behind a row's last token is never seen by a token of the row.
    """
    positions = blas.mlx().arange(prefix.length, prefix.length + ids.shape[1])
    layers, h = RowLayers(model, prefix, positions, prefix.length), embed(model, ids)
    for i in range(len(model.layers)):
        h = decoder_layer(layers, i, h)
    return h
