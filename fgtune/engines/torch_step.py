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
  tokens that the model is sure not to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..core import blas
from ..models.gemma3 import FINAL_NORM, Gemma3Config, decoder_layer
from .protocols import StepEngine
from .torch_layers import PackedLayers
from .torch_layout import PackedLayout
from .torch_linear import AdaptedLinears
from .torch_loss import CrossEntropy, SampledVocabulary
from .torch_support import (
    as_torch,
    bfloat16_unsupported_reason,
    keep_few_shapes,
    linear_layers,
    trim_memory,
    unsupported_reason,
)

MOST_PREFIXES = 8  # whose run through the frozen layers is kept
TRIM_EVERY = 8  # steps; in between, freed memory stays with the process


class TorchEngine(StepEngine):
    """Loss and gradients of an MLX model (plain, LoRA, DoRA or full) by torch on the CPU.

    In float32; with `precision="bfloat16"` the matmul operands are rounded to bfloat16 (products alone:
    sums, norms, the residual stream, adapters and gradients stay float32), which processors with AVX512-BF16 or AMX
    multiply several times faster. With `softmax="sampled"` and the `learned` tokens of all rows to come, `gradients`
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
        self.gemma = Gemma3Config.from_args(model.args)
        self.dtype = torch.bfloat16 if half else torch.float32
        self.linears = []
        for i, layer in enumerate(model.layers):
            groups: dict[tuple[str, ...], list] = {}
            for names, name, module in linear_layers(layer):
                groups.setdefault(names, []).append((name, module))
            self.linears.append({n: AdaptedLinears(f"model.layers.{i}", m, self.dtype) for n, m in groups.items()})
        self.first = next((i for i, groups in enumerate(self.linears) if any(g.trained for g in groups.values())), 0)
        self._below: dict = {}  # prefix -> what the frozen layers below the first adapter make of it
        self.embedding = as_torch(model.model.embed_tokens.weight)
        self.table = self.embedding if model.tie_word_embeddings else as_torch(model.lm_head.weight)
        self.table = self.table.to(self.dtype)
        sampled = config is not None and config.softmax == "sampled"
        self.vocabulary = SampledVocabulary(self.table, learned) if sampled else None

    def loss(self, batch) -> tuple[float, int]:
        """(sum of the cross-entropy, learned tokens)."""
        with torch.no_grad():
            parameters = self.trainable_parameters()
            return self._loss(batch, parameters).item(), len(batch.targets)

    def gradients(self, batch):
        """(sum of the cross-entropy, tree of the sum's gradients as MLX arrays)."""
        from mlx.utils import tree_unflatten

        mx = blas.mlx()
        parameters = self.trainable_parameters()
        for parameter in parameters.values():
            parameter.requires_grad_()
        total = self._loss(batch, parameters, self.vocabulary)
        total.backward()
        out = []
        for name, parameter in parameters.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            out.append((name, mx.array(gradient.numpy())))
        mx.eval([g for _, g in out])
        self.steps += 1
        if self.steps % TRIM_EVERY == 0:
            trim_memory()
        return total.item(), tree_unflatten(out)

    def trainable_parameters(self) -> dict[str, torch.Tensor]:
        """The model's trainable parameters by name, as they are now, over the memory of MLX."""
        from mlx.utils import tree_flatten

        trainable = tree_flatten(self.model.trainable_parameters())
        blas.mlx().eval([value for _, value in trainable])
        return {name: as_torch(value) for name, value in trainable}

    def _loss(self, batch, parameters, vocabulary: SampledVocabulary | None = None):
        """Sum of the cross-entropy of a batch, a float64 scalar; an estimate with `vocabulary`."""
        layout = PackedLayout.of(batch)
        layers = PackedLayers.of(self.model, self.gemma, self.linears, parameters, layout, self.dtype)
        h, start = self.embedding[layout.ids] * float(self.gemma.embedding_scale), 0
        if layout.prefix and self.first:
            h, start = self._frozen_layers(layers, batch.prefix, h), self.first
        for i in range(start, len(self.linears)):
            h = decoder_layer(layers, i, h)
        h = layers.rms_norm(FINAL_NORM, self.model.model.norm, h)
        return CrossEntropy.apply(h, self.table, layout.targets, vocabulary)

    @torch.no_grad()
    def _frozen_layers(self, layers: PackedLayers, prefix: tuple[int, ...], h):
        """`h [T, hidden]` behind the layers below the first adapter, which the prefix runs through once."""
        P = layers.layout.prefix
        below, kept = self._below.get(prefix) or (h[:P], [])
        if not kept:
            alone = replace(layers, tokens=slice(0, P), collect=kept)
            for i in range(self.first):
                below = decoder_layer(alone, i, below)
            if len(self._below) >= MOST_PREFIXES:
                self._below.clear()
            self._below[prefix] = below, kept
        rows, behind = h[P:], replace(layers, tokens=slice(P, None), prefix_keys_values=kept)
        for i in range(self.first):
            rows = decoder_layer(behind, i, rows)
        return torch.cat([below, rows])
