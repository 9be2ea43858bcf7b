"""Stage 06: the fused model as an ONNX graph."""

from fgtune.export.onnx import export_onnx

__all__ = ["export_onnx"]
