"""What answers prompts: MLX (03, 05), onnxruntime (06 to 08, 10) and transformers.js under Node (09)."""

from __future__ import annotations

from fgtune.models.adapters import load_model
from fgtune.runtimes.mlx import MlxGenerator
from fgtune.runtimes.node import NodeGenerator
from fgtune.runtimes.onnxruntime import OrtGenerator

__all__ = ["MlxGenerator", "NodeGenerator", "OrtGenerator", "load_model"]
