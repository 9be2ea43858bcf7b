"""Fused weights to ONNX: one small writer for Gemma 3's decoder, in the layout that transformers.js reads.

The graph is written straight from the safetensors, tensor by tensor, so that no second copy of the model is ever in
memory. It uses the fused operators that onnxruntime has in Python, Node and the browser alike (GroupQueryAttention,
SkipSimplifiedLayerNormalization). The embedding is stored once and serves the head too.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ExportError
from .decoder import write_decoder
from .layout import model_file, op_counts, read_config, variant_bytes, write_side_files, write_transformers_js_config
from .optimum import run_optimum
from .weights import SafetensorsWeights
from .writers import Float32Writer

EXPORTERS = ("direct", "optimum")


@dataclass(frozen=True)
class ExportReport:
    """What an export made: `bytes` of the .onnx and its data, `seconds`, `peak_mb` of the process, operator counts."""

    exporter: str
    path: str
    bytes: int
    seconds: float
    peak_mb: float
    max_positions: int
    ops: dict[str, int]


def export_onnx(
    fused_dir: str | Path, out_dir: str | Path, exporter: str = "direct", max_positions: int = 4096
) -> ExportReport:
    """Write `fused_dir` (a transformers folder) as fp32 ONNX to `out_dir`; no network. Raises ExportError.

    `direct` writes the graph itself; `optimum` runs optimum-onnx in a process of its own, as the reference.
    """
    fused, out = Path(fused_dir), Path(out_dir)
    if exporter not in EXPORTERS:
        raise ExportError(f"unknown exporter {exporter!r}: use one of {', '.join(EXPORTERS)}")
    config = read_config(fused)
    limit = int(config.get("max_position_embeddings") or max_positions)
    positions = min(max_positions, limit)
    if positions < 1:
        raise ExportError(f"max_positions must be at least 1, not {max_positions}")
    begin = time.perf_counter()
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    target = out / "onnx" / model_file("fp32")
    if exporter == "direct":
        weights = SafetensorsWeights(fused)
        write_decoder(target, config, weights, Float32Writer(), positions)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        positions = limit
        peak = run_optimum(fused, out)
    write_side_files(fused, out, positions)
    write_transformers_js_config(out)
    seconds = time.perf_counter() - begin
    peak_mb = peak / (1e6 if sys.platform == "darwin" else 1e3)
    return ExportReport(
        exporter, str(target), variant_bytes(out, "fp32"), seconds, peak_mb, positions, op_counts(target)
    )
