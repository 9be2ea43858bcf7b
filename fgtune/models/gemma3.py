"""The architecture of Gemma 3, described once: what its config says, and the order of a decoder layer.

`decoder_layer` and `LayerOperations` say in which order a layer computes. Every user of the architecture (both training
engines, both decoders, GPTQ's pass and the ONNX graph) brings its own operations.
Gemma 3: https://arxiv.org/abs/2503.19786.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..core.errors import ExportError

# Names of tensors, as Hugging Face writes them, without ".weight". Those of a layer stand behind "model.layers.N.".
EMBEDDING, FINAL_NORM = "model.embed_tokens", "model.norm"
INPUT_NORM, POST_ATTENTION_NORM = "input_layernorm", "post_attention_layernorm"
PRE_FEEDFORWARD_NORM, POST_FEEDFORWARD_NORM = "pre_feedforward_layernorm", "post_feedforward_layernorm"
QUERY_NORM, KEY_NORM = "self_attn.q_norm", "self_attn.k_norm"
NORMS = (INPUT_NORM, QUERY_NORM, KEY_NORM, POST_ATTENTION_NORM, PRE_FEEDFORWARD_NORM, POST_FEEDFORWARD_NORM)
# Matrices that multiply the same input stand together, so that they can be one product.
KEY_VALUE = ("self_attn.k_proj", "self_attn.v_proj")
QUERY_KEY_VALUE = ("self_attn.q_proj", *KEY_VALUE)
ATTENTION_OUT = ("self_attn.o_proj",)
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = ("mlp.down_proj",)
PROJECTIONS = (QUERY_KEY_VALUE, ATTENTION_OUT, GATE_UP, DOWN)


def layer_tensor(layer: int, name: str) -> str:
    """The whole name of a tensor of layer `layer` (from 0)."""
    return f"model.layers.{layer}.{name}"


@functools.cache
def embedding_scale(hidden_size: int) -> np.float32:
    """sqrt(hidden_size) rounded to bfloat16, as Gemma multiplies its embedding (25.25 for 640)."""
    from ml_dtypes import bfloat16

    return np.float32(bfloat16(hidden_size**0.5))


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of one kind of layer: its base `theta`, and how long contexts are scaled."""

    theta: float
    scaling: str = "default"
    factor: float = 1.0

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians per position, float32 [1, head_dim / 2]. Raises ExportError for a scaling other than linear."""
        if self.scaling not in ("default", "linear"):
            raise ExportError(f"rope scaling {self.scaling!r} is not exported")
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        return (np.float32(1) / np.float32(self.theta) ** exponents / np.float32(self.factor))[None]


@dataclass(frozen=True)
class Gemma3Config:
    """What `config.json` says about the decoder.

    `kinds` has "local" (a sliding window of `sliding_window` positions) or "global" for each layer; `rope` has the
    rotary embedding of both kinds.
    """

    vocab_size: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    attention_scale: float
    sliding_window: int
    kinds: tuple[str, ...]
    rope: Mapping[str, Rope]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Gemma3Config:
        """Read `config.json` as transformers 4 or 5 writes it."""
        head_dim = config["head_dim"]
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=head_dim,
            rms_norm_eps=config["rms_norm_eps"],
            attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
            sliding_window=config["sliding_window"],
            kinds=_layer_kinds(config),
            rope=_ropes(config),
        )

    @classmethod
    def from_args(cls, args) -> Gemma3Config:
        """Read the arguments of an mlx-lm model (`model.args`)."""
        return cls.from_dict(vars(args))

    @property
    def layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.kinds)

    @property
    def groups(self) -> int:
        """How many query heads share one key-value head."""
        return self.heads // self.kv_heads

    @property
    def embedding_scale(self) -> np.float32:
        """What embeddings are multiplied by."""
        return embedding_scale(self.hidden_size)

    @functools.cached_property
    def windows(self) -> dict[str, int | None]:
        """How many positions a query of each kind of layer sees, itself included; None without a limit."""
        return {"global": None, "local": self.sliding_window}

    def window(self, layer: int) -> int | None:
        """How many positions a query of this layer sees, itself included; None without a limit."""
        return self.windows[self.kinds[layer]]


def _layer_kinds(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("layer_types")
    if named:
        return tuple("local" if kind == "sliding_attention" else "global" for kind in named)
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return tuple("local" if (i + 1) % pattern else "global" for i in range(config["num_hidden_layers"]))


def _ropes(config: Mapping[str, Any]) -> dict[str, Rope]:
    found = config.get("rope_parameters") or {}
    if "full_attention" in found:  # transformers 5
        scaling, local = found["full_attention"], found["sliding_attention"]
        theta, base = scaling["rope_theta"], local["rope_theta"]
    else:
        theta, base = config["rope_theta"], config["rope_local_base_freq"]
        scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = float(scaling["factor"]) if kind == "linear" else 1.0
    return {"global": Rope(float(theta), kind, factor), "local": Rope(float(base))}


class LayerOperations(Protocol):
    """The operations of a decoder layer, for `decoder_layer`.

    What flows between them is each implementation's own: arrays, names of graph tensors, or two streams in lockstep.
    Names of tensors are the constants of this module.
    """

    @abstractmethod
    def norm(self, layer: int, name: str, x):
        """RMS norm over the last axis, times `1 + weight`: of the residual stream, a branch, queries or keys."""
        ...

    @abstractmethod
    def project(self, layer: int, names: tuple[str, ...], x):
        """`x @ weight^T` for each of `names`, one of `PROJECTIONS` (or `KEY_VALUE`). Returns a sequence.

        The result for `GATE_UP` goes to `gated_gelu` as it is, so there it may be one array with both side by side.
        """
        ...

    @abstractmethod
    def split_heads(self, x):
        """`[..., heads * head_dim]` with heads apart, as `norm`, `rotate` and `attend` take it."""
        ...

    @abstractmethod
    def rotate(self, layer: int, x, query: bool):
        """Rotary positions on queries or keys. Queries are also multiplied by the attention scale (or in `attend`)."""
        ...

    @abstractmethod
    def attend(self, layer: int, q, k, v):
        """Causal attention within the layer's window; heads stand side by side again in the result."""
        ...

    def restrict(self, layer: int, stream):
        """The stream at the positions for which `attend` gave a result: all, where not said otherwise."""
        return stream

    @abstractmethod
    def gated_gelu(self, *gate_up):
        """`gelu(gate) * up`, with the tanh approximation."""
        ...

    @abstractmethod
    def add(self, stream, branch):
        """The residual stream with the result of a branch added."""
        ...


def decoder_layer(ops: LayerOperations, layer: int, stream):
    """The residual stream behind layer `layer`: attention, then a gated MLP, each with a norm before and behind it."""
    attended = _attention(ops, layer, ops.norm(layer, INPUT_NORM, stream))
    stream = ops.restrict(layer, stream)
    (branch,) = ops.project(layer, ATTENTION_OUT, attended)
    stream = ops.add(stream, ops.norm(layer, POST_ATTENTION_NORM, branch))
    x = ops.norm(layer, PRE_FEEDFORWARD_NORM, stream)
    (branch,) = ops.project(layer, DOWN, ops.gated_gelu(*ops.project(layer, GATE_UP, x)))
    return ops.add(stream, ops.norm(layer, POST_FEEDFORWARD_NORM, branch))


def keys_values(ops: LayerOperations, layer: int, stream):
    """(keys, values) of layer `layer` alone, for tokens whose output nothing reads."""
    k, v = ops.project(layer, KEY_VALUE, ops.norm(layer, INPUT_NORM, stream))
    k, v = ops.split_heads(k), ops.split_heads(v)
    return ops.rotate(layer, ops.norm(layer, KEY_NORM, k), query=False), v


def _attention(ops: LayerOperations, layer: int, x):
    q, k, v = ops.project(layer, QUERY_KEY_VALUE, x)
    q, k, v = ops.split_heads(q), ops.split_heads(k), ops.split_heads(v)
    q = ops.rotate(layer, ops.norm(layer, QUERY_NORM, q), query=True)
    k = ops.rotate(layer, ops.norm(layer, KEY_NORM, k), query=False)
    return ops.attend(layer, q, k, v)
