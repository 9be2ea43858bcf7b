"""What answers prompts: MLX (03, 05), onnxruntime (06 to 08, 10) and transformers.js under Node (09)."""

from __future__ import annotations

from fgtune.format.messages import normalize_messages
from fgtune.format.tools import normalize_tools
from fgtune.models.adapters import load_model
from fgtune.runtimes.mlx import MlxGenerator
from fgtune.runtimes.node import NodeGenerator as PlainNodeGenerator
from fgtune.runtimes.onnxruntime import OrtGenerator

__all__ = ["MlxGenerator", "NodeGenerator", "OrtGenerator", "load_model"]


class NodeGenerator(PlainNodeGenerator):
    """Greedy answers of one ONNX variant by transformers.js under Node."""

    def render(self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False) -> str:
        """The prompt as transformers.js renders chat rows from the template that travels with the model."""
        return super().render(normalize_messages(messages), normalize_tools(tools), add_generation_prompt)
