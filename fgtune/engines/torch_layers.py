"""Gemma's layer over packed tokens, with gradients, by torch.

Shapes: `T` packed tokens, `P` prefix, `K` key-value heads, `r` query heads for each, `d` head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

import torch

from ..models.gemma3 import GATE_UP, QUERY_KEY_VALUE, Gemma3Config, LayerOperations, layer_tensor
from .torch_layout import PackedLayout, attention_bias
from .torch_ops import (
    Attention,
    GatedGelu,
    RMSNorm,
    Rotary,
    RowAttention,
    RowLayout,
    fold_heads,
    rotary_tables,
    unfold_heads,
)
from .torch_support import as_torch

if TYPE_CHECKING:
    from .torch_linear import AdaptedLinears

BLOCK = 256  # queries per attention block of the prefix


@dataclass
class AttentionMasks:
    """What packed tokens see in one kind of layer.

    `blocks` are (first query, end, first key, bias or None) of each block of the prefix; rows see the prefix from
    position `low` on, and of themselves what `rows` says.
    """

    blocks: list[tuple]
    low: int
    rows: RowLayout

    @classmethod
    def of(cls, layout: PackedLayout, window: int | None, config: Gemma3Config) -> AttentionMasks:
        """The masks of layers with this window."""
        P, S, r = layout.prefix, layout.width, config.groups
        blocks = []
        for a in range(0, P, BLOCK):
            b = min(a + BLOCK, P)
            low = max(0, a - window + 1) if window else 0
            bias = attention_bias(torch.arange(a, b), torch.arange(low, b), window)
            blocks.append((a, b, low, None if bias is None else bias.repeat(r, 1)))
        low = min(P, max(0, P - window + 1)) if window else 0
        prefix = attention_bias(layout.positions[P:], torch.arange(low, P), window)
        own = attention_bias(torch.arange(S), torch.arange(S), window)
        rows = RowLayout(layout.slots, layout.rows, S, config.kv_heads, r, prefix, 0.0 if own is None else own)
        return cls(blocks, low, rows)


@dataclass
class PackedLayers(LayerOperations):
    """The operations of a layer over packed tokens `[T, ...]`: the prefix, the rows behind it, or both (`tokens`).

    `linears` are each layer's groups of linear layers, by the names in `PROJECTIONS`; `rope` and `masks` go by the kind
    of layer. Where the rows go alone, `prefix_keys_values` has the prefix's (keys, values) `[P, K, d]` of each layer;
    where `collect` is set, those of the tokens are put there. The last layer runs where something is learned.
    """

    model: object
    config: Gemma3Config
    linears: list[Mapping[tuple[str, ...], AdaptedLinears]]
    parameters: dict[str, torch.Tensor]
    layout: PackedLayout
    rope: dict[str, tuple]
    masks: dict[str, AttentionMasks]
    dtype: torch.dtype
    tokens: slice = field(default_factory=lambda: slice(None))
    prefix_keys_values: list | None = None
    collect: list | None = None

    @classmethod
    def of(cls, model, config: Gemma3Config, linears, parameters, layout: PackedLayout, dtype) -> PackedLayers:
        """For all tokens of a batch; `dtype` is that of the matmul operands."""
        rope = {
            kind: rotary_tables(rope.theta, config.head_dim, layout.positions) for kind, rope in config.rope.items()
        }
        masks = {kind: AttentionMasks.of(layout, window, config) for kind, window in config.windows.items()}
        return cls(model, config, linears, parameters, layout, rope, masks, dtype)

    @property
    def prefix(self) -> int:
        """How many of the tokens are the prefix's."""
        return 0 if self.prefix_keys_values else self.layout.prefix

    def norm(self, layer, name, x):
        module = attrgetter(name)(self.model.layers[layer])
        return self.rms_norm(layer_tensor(layer, name), module, x)

    def rms_norm(self, name: str, module, x):
        """The norm `module`, whose whole name is `name`; its weight is a parameter where it is trained."""
        weight = self.parameters.get(f"{name}.weight")
        return RMSNorm.apply(x, as_torch(module.weight) if weight is None else weight, module.eps)

    def project(self, layer, names, x):
        group = self.linears[layer][names]
        group.prepare(self.parameters)
        y = group(x, float32_output=names != GATE_UP)
        if names != QUERY_KEY_VALUE:
            return (y,)
        queries, keys = (heads * self.config.head_dim for heads in (self.config.heads, self.config.kv_heads))
        return y.split([queries, keys, keys], dim=-1)

    def split_heads(self, x):
        return x.reshape(len(x), -1, self.config.head_dim)

    def rotate(self, layer, x, query):
        rotation = [table[self.tokens] for table in self.rope[self.config.kinds[layer]]]
        if query:
            rotation = [table * self.config.attention_scale for table in rotation]  # rotates, and scales as well
        return Rotary.apply(x, *rotation)

    def attend(self, layer, q, k, v):
        P, masks, pieces = self.prefix, self.masks[self.config.kinds[layer]], []
        last = layer == self.config.layers - 1
        if P and not last:
            pieces.append(self._prefix_attention(q[:P], k[:P], v[:P], masks.blocks))
        keys, values = self.prefix_keys_values[layer] if self.prefix_keys_values else (k[:P], v[:P])
        if self.collect is not None:
            self.collect.append((keys, values))
        if len(q) > P:
            keys, values = keys[masks.low :], values[masks.low :]
            pieces.append(RowAttention.apply(q[P:], k[P:], v[P:], keys, values, masks.rows, self.dtype))
        attended = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return attended[self.layout.learned] if last else attended

    def restrict(self, layer, stream):
        last = layer == self.config.layers - 1
        return stream[self.prefix :][self.layout.learned] if last else stream

    def gated_gelu(self, both):
        return GatedGelu.apply(both)

    def add(self, stream, branch):
        return stream + branch

    def _prefix_attention(self, q, k, v, blocks):
        kv, r = self.config.kv_heads, self.config.groups
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        pieces = []
        for a, b, low, bias in blocks:
            o = Attention.apply(fold_heads(q[a:b], kv, r), k[:, low:b], v[:, low:b], bias, self.dtype)
            pieces.append(unfold_heads(o, r))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
