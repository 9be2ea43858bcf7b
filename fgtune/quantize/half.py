"""float16 without overflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..engines.ort import OrtModel
from ..export.layout import model_file
from .calibration import packed_rows, run_segments
from .recipes import QuantizeError

FLOAT16_MAX = 65504.0


def measure_peaks(
    onnx_dir: str | Path,
    calibration: Sequence[Sequence[int]],
    threads: int | None = None,
    channel_scales: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """The largest absolute value by kind of tensor in the fp32 model; the prefix that all rows share is run once.

    A tensor in `channel_scales` is divided by its scales first, as `SmoothQuant` does. Raises QuantizeError for values
    that are not finite.
    """
    path = Path(onnx_dir) / "onnx" / model_file("fp32")
    watched = _kinds_of_tensors(path)
    model = OrtModel(path, threads, sorted(watched))
    rows = packed_rows(calibration)
    peaks = dict.fromkeys(sorted(set(watched.values())), 0.0)
    for _, values in run_segments(model, rows):
        for name, value in values.items():
            peak = float(np.abs(value / (channel_scales or {}).get(name, 1)).max())
            if not np.isfinite(peak):
                raise QuantizeError(f"the fp32 model gives {peak} in {name}")
            peaks[watched[name]] = max(peaks[watched[name]], peak)
    return peaks


def _kinds_of_tensors(path: Path) -> dict[str, str]:
    """The tensors of the fp32 graph that could overflow in float16, by name, each with its kind."""
    import onnx

    watched: dict[str, str] = {}
    for node in onnx.load(str(path), load_external_data=False).graph.node:
        name = node.output[0]
        if node.op_type == "MatMul":
            watched[name] = name.rsplit(".", 1)[-1]
        elif node.op_type == "Gemm":
            watched[name] = "logits"
        elif node.op_type in ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
            # What is added to the stream is scaled with it.
            watched[name] = "residual stream" if ".post_" in name else "norm"
            if len(node.output) > 3:
                watched[node.output[3]] = "residual stream"
        elif name == "model.embedded":
            watched[name] = "residual stream"
        elif name.endswith((".mlp.product", ".mlp.act")):
            watched[name] = "mlp product"
    return watched


def residual_scale(peaks: dict[str, float], margin: float = 4.0) -> float:
    """The power of two that keeps the residual stream `margin` times below float16's largest number.

    Raises QuantizeError when another tensor, which the scale does not reach, would overflow.
    """
    for kind, peak in peaks.items():
        if kind != "residual stream" and peak * 1.5 > FLOAT16_MAX:
            raise QuantizeError(f"float16 would overflow: {kind} reaches {peak:,.0f} and cannot be scaled")
    scale = 1.0
    while peaks["residual stream"] * scale * margin > FLOAT16_MAX:
        scale /= 2
    return scale
