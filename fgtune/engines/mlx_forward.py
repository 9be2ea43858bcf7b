"""Gemma 3's layers over a prefix that many rows share, with the modules of an mlx-lm model (LoRA, DoRA or plain).

The prefix runs once. Rows attend to its keys and values in one product for the whole batch, then to their own.
mlx-lm's `ConcatenateKVCache.make_mask` ignores `window_size` (0.29.1), so the masks are made here.
Shapes: `B` rows, `S` positions of a row, `P` of the prefix, `H` heads, `K` key-value heads, `d` head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core import blas


@dataclass
class Prefix:
    """Keys and values `[1, K, P, d]` of every layer for the `length` tokens that all rows begin with."""

    length: int = 0
    keys: list = field(default_factory=list)
    values: list = field(default_factory=list)


def window_of(model, layer) -> int | None:
    """How many positions a query of this layer sees, itself included; None without a limit."""
    return model.args.sliding_window if layer.self_attn.is_sliding else None


def embed(model, ids):
    """Scaled embeddings of `ids` (any shape)."""
    mx = blas.mlx()
    h = model.model.embed_tokens(ids)
    return h * mx.array(model.args.hidden_size**0.5, mx.bfloat16).astype(h.dtype)


def logits(model, h):
    """Logits of hidden states `[..., hidden]`, which the final norm has not seen yet."""
    return head(model, model.model.norm(h))


def head(model, h):
    """Logits of normed hidden states `[..., hidden]`."""
    return model.model.embed_tokens.as_linear(h) if model.tie_word_embeddings else model.lm_head(h)


def _heads(x, n: int):
    B, S, _ = x.shape
    return x.reshape(B, S, n, -1).transpose(0, 2, 1, 3)


def _queries(attn, x, offset):
    return attn.rope(attn.q_norm(_heads(attn.q_proj(x), attn.n_heads)), offset=offset) * attn.scale


def _keys_values(attn, x, offset):
    keys = attn.rope(attn.k_norm(_heads(attn.k_proj(x), attn.n_kv_heads)), offset=offset)
    return keys, _heads(attn.v_proj(x), attn.n_kv_heads)


def _attend(q, parts, mask):
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


def _rest_of_layer(layer, h, attended):
    h = h + layer.post_attention_layernorm(layer.self_attn.o_proj(attended))
    return h + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(h)))


def run_prefix(model, ids, chunk: int = 256) -> Prefix:
    """Run `ids [P]` once and keep every layer's keys and values; `chunk` queries at a time look at keys."""
    mx = blas.mlx()
    prefix = Prefix(int(ids.shape[0]))
    if not prefix.length:
        return prefix
    h = embed(model, ids[None])
    last = model.layers[-1]
    for layer in model.layers:
        attn, window = layer.self_attn, window_of(model, layer)
        x = layer.input_layernorm(h)
        keys, values = _keys_values(attn, x, 0)
        prefix.keys.append(keys)
        prefix.values.append(values)
        if layer is last:
            break  # nothing reads the prefix's own output
        q, pieces = _queries(attn, x, 0), []
        for a in range(0, prefix.length, chunk):
            b = min(a + chunk, prefix.length)
            low = max(0, a - window + 1) if window else 0
            mask = causal_mask(mx.arange(a, b), mx.arange(low, b), window)
            pieces.append(_attend(q[:, :, a:b], [(keys[:, :, low:b], values[:, :, low:b])], mask))
        h = _rest_of_layer(layer, h, mx.concatenate(pieces, axis=1) if len(pieces) > 1 else pieces[0])
    return prefix


def causal_mask(queries, keys, window: int | None):
    """`[..., S, n]`, True where a key's position is visible from a query's: not later, and inside the window."""
    q, k = queries[..., :, None], keys[..., None, :]
    mask = k <= q
    return mask & (q - k < window) if window else mask


def visible_prefix(prefix: Prefix, i: int, window: int | None, position: int):
    """Keys and values of layer `i` that a query at `position` or later can see, and the position of the first."""
    low = max(0, min(prefix.length, position - window + 1)) if window else 0
    return prefix.keys[i][:, :, low:], prefix.values[i][:, :, low:], low


def run_rows(model, ids, prefix: Prefix):
    """Hidden states `[B, S, hidden]` (before the final norm) of `ids [B, S]`, which follow the prefix.

    Rows are padded on the right: what stands behind a row's last token is never seen by a token of the row.
    """
    mx = blas.mlx()
    h = embed(model, ids)
    P, S = prefix.length, ids.shape[1]
    masks = {}
    positions = mx.arange(P, P + S)
    for i, layer in enumerate(model.layers):
        attn, window = layer.self_attn, window_of(model, layer)
        x = layer.input_layernorm(h)
        q, (keys, values) = _queries(attn, x, P), _keys_values(attn, x, P)
        parts = [(keys, values)]
        low = 0
        if P:
            kept, kept_values, low = visible_prefix(prefix, i, window, P)
            if kept.shape[2]:
                parts.insert(0, (kept, kept_values))
        if window not in masks:
            masks[window] = causal_mask(positions, mx.arange(low, P + S), window)
        h = _rest_of_layer(layer, h, _attend(q, parts, masks[window]))
    return h
