"""Gemma 3's decoder: what its config says."""

from __future__ import annotations

import numpy as np

from ..core.errors import ExportError


def layer_kinds(config: dict) -> list[bool]:
    """True for each layer with a sliding window."""
    kinds = config.get("layer_types")
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return [(i + 1) % pattern != 0 for i in range(config["num_hidden_layers"])]


def embedding_scale(hidden_size: int) -> np.float32:
    """sqrt(hidden_size) rounded to bfloat16, as Gemma multiplies its embedding (25.25 for 640)."""
    from ml_dtypes import bfloat16

    return np.float32(bfloat16(hidden_size**0.5))


def rope_frequencies(theta: float, head_dim: int, factor: float = 1.0) -> np.ndarray:
    """Radians per position, float32 [1, head_dim / 2]."""
    inverse = np.float32(1) / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    return (inverse / np.float32(factor))[None]


def rope_settings(config: dict) -> dict[str, tuple[float, float]]:
    """(theta, linear factor) of the `global` and the `local` layers."""
    found = config.get("rope_parameters") or {}
    if "full_attention" in found:  # transformers 5
        wide, local = found["full_attention"], found["sliding_attention"]
        theta, base, scaling = wide["rope_theta"], local["rope_theta"], wide
    else:
        theta, base = config["rope_theta"], config["rope_local_base_freq"]
        scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ExportError(f"rope scaling {kind!r} is not exported")
    factor = float(scaling["factor"]) if kind == "linear" else 1.0
    return {"global": (float(theta), factor), "local": (float(base), 1.0)}
