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

from collections.abc import Iterable

import torch

from ..core import blas
from .torch_layout import PackedLayout, attention_bias
from .torch_loss import CrossEntropy, SampledVocabulary
from .torch_ops import (
    Attention,
    GatedGelu,
    PackedLinear,
    RMSNorm,
    Rotary,
    RowAttention,
    RowLayout,
    fold_heads,
    unfold_heads,
)
from .torch_support import (
    as_torch,
    bfloat16_unsupported_reason,
    keep_few_shapes,
    linear_layers,
    trim_memory,
    unsupported_reason,
)

BLOCK = 256  # queries per attention block of the prefix


MOST_PREFIXES = 8  # whose run through the frozen layers is kept


TRIM_EVERY = 8  # steps; in between, freed memory stays with the process


class AdaptedLinears:
    """A group of linear layers: effective weight, and the trainable parameters behind each part."""

    def __init__(self, prefix: str, modules: list, dtype):
        self.parts, self.sources = [], []
        start = 0
        for name, module in modules:
            lora = "lora_a" in module
            frozen = as_torch((module.linear if lora else module).weight)
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
        return PackedLinear.apply(x, self.weight, wide, self.parts, *self.parameters)


class TorchEngine:
    """Loss and gradients of an MLX model (plain, LoRA, DoRA or full) by torch on the CPU.

    In float32; with `precision="bfloat16"` the factors of every product are rounded to bfloat16 (products alone:
    sums, norms, the residual stream, adapters and gradients stay float32), which processors with AVX512-BF16 or AMX
    multiply several times faster. With `softmax="sampled"` and the `learned` words of all rows to come, `gradients`
    takes the loss over a sample of the vocabulary (see `SampledVocabulary`); `loss` is always exact.
    """

    name = "torch"

    def __init__(self, model, config=None, learned: Iterable[int] = ()):
        half = config is not None and config.precision == "bfloat16"
        reason = unsupported_reason(model) or (bfloat16_unsupported_reason() if half else None)
        if reason:
            raise ValueError(f"engine torch cannot be used: {reason}")
        keep_few_shapes()
        mx = blas.mlx()
        mx.eval(model.parameters())
        self.model, self.steps = model, 0
        args = model.args
        self.dtype = torch.bfloat16 if half else torch.float32
        self.layers = []
        for i, layer in enumerate(model.layers):
            groups: dict[str, list] = {}
            for group, name, module in linear_layers(layer):
                groups.setdefault(group, []).append((name, module))
            self.layers.append({g: AdaptedLinears(f"model.layers.{i}", m, self.dtype) for g, m in groups.items()})
        self.first = next((i for i, groups in enumerate(self.layers) if any(g.trained for g in groups.values())), 0)
        self._below: dict = {}  # prefix -> what the frozen layers below the first adapter make of it
        self.embedding = as_torch(model.model.embed_tokens.weight)
        self.table = self.embedding if model.tie_word_embeddings else as_torch(model.lm_head.weight)
        self.table = self.table.to(self.dtype)
        self.words = (
            SampledVocabulary(self.table, learned) if config is not None and config.softmax == "sampled" else None
        )
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
            trim_memory()
        return total.item(), tree_unflatten(out)

    # -- the model

    def _parameters(self, gradients: bool) -> tuple[dict, list[str]]:
        from mlx.utils import tree_flatten

        mx = blas.mlx()
        trainable = tree_flatten(self.model.trainable_parameters())
        mx.eval([v for _, v in trainable])
        parameters = {name: as_torch(value).requires_grad_(gradients) for name, value in trainable}
        return parameters, [name for name, _ in trainable]

    def _rope(self, base: float, positions):
        """cos and sin `[T, 1, d/2]` for packed tokens."""
        inverse = (base ** (-torch.arange(0, self.d, 2, dtype=torch.float64) / self.d)).float()
        angles = positions.float()[:, None] * inverse
        return angles.cos()[:, None], angles.sin()[:, None]

    def _forward(self, batch, parameters, words=None):
        args, layout = self.model.args, PackedLayout.of(batch)
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
        return CrossEntropy.apply(h, self.table, layout.targets, words)

    def _norm(self, x, name: str, module, parameters):
        weight = parameters.get(f"{name}.weight")
        return RMSNorm.apply(x, as_torch(module.weight) if weight is None else weight, module.eps)

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
        q = Rotary.apply(norm(q, "self_attn.q_norm", attn.q_norm), *scaled)
        k = Rotary.apply(norm(k, "self_attn.k_norm", attn.k_norm), *rope)
        pieces = []
        if P and not last:
            pieces.append(self._prefix_attention(q[:P], k[:P], v[:P], biases))
        keys, values = known or (k[:P], v[:P])
        if len(h) > P:
            low = biases["low"]
            pieces.append(RowAttention.apply(q[P:], k[P:], v[P:], keys[low:], values[low:], biases["rows"], self.dtype))
        attended = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        if last:
            attended, h = attended[layout.learned], h[P:][layout.learned]
        h = h + norm(groups["out"](attended), "post_attention_layernorm", layer.post_attention_layernorm)
        x = norm(h, "pre_feedforward_layernorm", layer.pre_feedforward_layernorm)
        x = groups["down"](GatedGelu.apply(groups["gate_up"](x, wide=False)))
        return h + norm(x, "post_feedforward_layernorm", layer.post_feedforward_layernorm), (keys, values)

    def _make_biases(self, layout, window) -> dict:
        """Masks of one kind of layer: for each block of the prefix, and for the rows."""
        P, S = layout.prefix, layout.width
        out: dict = {"blocks": []}
        for a in range(0, P, BLOCK):
            b = min(a + BLOCK, P)
            low = max(0, a - window + 1) if window else 0
            bias = attention_bias(torch.arange(a, b), torch.arange(low, b), window)
            out["blocks"].append((a, b, low, None if bias is None else bias.repeat(self.r, 1)))
        low = out["low"] = min(P, max(0, P - window + 1)) if window else 0
        prefix = attention_bias(layout.positions[P:], torch.arange(low, P), window)
        own = attention_bias(torch.arange(S), torch.arange(S), window)
        out["rows"] = RowLayout(layout.slots, layout.rows, S, self.kv, self.r, prefix, 0.0 if own is None else own)
        return out

    def _prefix_attention(self, q, k, v, biases):
        k, v = k.transpose(0, 1), v.transpose(0, 1)
        pieces = []
        for a, b, low, bias in biases["blocks"]:
            o = Attention.apply(fold_heads(q[a:b], self.kv, self.r), k[:, low:b], v[:, low:b], bias, self.dtype)
            pieces.append(unfold_heads(o, self.r))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
