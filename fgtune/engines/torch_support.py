"""What torch's kernels can run, over the memory of MLX."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from operator import attrgetter

import numpy as np
import torch

from ..core import blas
from ..models.gemma3 import PROJECTIONS

# oneDNN and torch's layer over it keep 0.6 MB for each shape of a bfloat16 product, up to 1024 shapes each. Batches
# differ, so row counts are rounded up to few shapes, and few are kept.
SHAPES_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}


def keep_few_shapes() -> None:
    """Limit what oneDNN keeps for each shape of a product; it reads the limit at its first product."""
    for name, capacity in SHAPES_KEPT.items():
        os.environ.setdefault(name, capacity)


def unsupported_reason(model) -> str | None:
    """Why this engine cannot run the model, or None if it can."""
    import mlx.nn as nn

    mx = blas.mlx()
    if mx.default_device() == mx.gpu:
        return "the model is on a GPU"
    if model.model.norm.weight.dtype != mx.float32:
        return "the weights are not float32"
    head = model.model.embed_tokens if model.tie_word_embeddings else model.lm_head
    if type(head) not in (nn.Embedding, nn.Linear) or model.args.rope_scaling:
        return "the model is quantised or scales its RoPE"
    for layer in model.layers:
        for _, _, module in linear_layers(layer):
            inner = module.linear if "lora_a" in module else module
            if type(inner) is not nn.Linear or "bias" in inner:
                return "the model is quantised or has biases"
            if "lora_a" in module and getattr(module.dropout, "_p_1", 1.0) < 1.0:
                return "dropout is on"
    return None


def bfloat16_unsupported_reason() -> str | None:
    """Why bfloat16 products would be slow here, or None where the processor has instructions for them."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this processor has no instructions for bfloat16 (AVX512-BF16 or AMX)"


def trim_memory() -> None:
    """Let glibc return what lies free between blocks still in use: batches differ in size, and holes add up."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def linear_layers(layer):
    """(names of the group, name, module) of a layer's linear layers; a group's outputs stand side by side."""
    for names in PROJECTIONS:
        for name in names:
            yield names, name, attrgetter(name)(layer)


def as_torch(array) -> torch.Tensor:
    """A torch tensor over the memory of an evaluated MLX array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not writable": nothing here writes to it
        return torch.from_numpy(np.asarray(array))
