"""Smaller variants of an exported model: fewer bits where they cost nothing, rounding that looks at the user's data.

Every variant is written anew by `export.write_decoder` from the fp32 export; only how a matrix is stored differs. The
embedding is stored once and serves as lookup table and as head. Matrices become MatMulNBits nodes; the lookup uses
standard operators over the same bytes, since the browser's WASM build has no GatherBlockQuantized.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..core.errors import ExportError
from ..export.decoder import write_decoder
from ..export.layout import (
    copy_side_files,
    model_file,
    op_counts,
    read_config,
    variant_bytes,
    write_transformers_js_config,
)
from ..export.weights import OnnxWeights
from .calibration import calibrate
from .half import measure_peaks, residual_scale
from .recipes import RECIPES, QuantizeError, Recipe, check_recipe
from .writer import Packed


@dataclass(frozen=True)
class VariantReport:
    """What was written: bytes with external data, seconds, the recipe, residual scale and peaks, operator counts."""

    variant: str
    path: str
    bytes: int
    seconds: float
    recipe: dict
    residual_scale: float
    peaks: dict[str, float]
    ops: dict[str, int]

    def as_dict(self) -> dict:
        """The report as plain JSON values."""
        return asdict(self)


def quantize(
    onnx_dir: str | Path,
    variant: str,
    out_dir: str | Path | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
    recipe: Recipe | None = None,
    threads: int | None = None,
    words: Iterable[int] | None = None,
) -> VariantReport:
    """Write `variant` of the fp32 export in `onnx_dir` to `out_dir` (default: the same folder). Raises QuantizeError.

    `calibration` are token ids of whole training rows; variants that round by GPTQ or compute in float16 need them.
    `words` are the ids that a recipe with `mixed_precision_rows` stores with more bits (default: those of `calibration`).
    """
    source = Path(onnx_dir)
    out = Path(out_dir) if out_dir is not None else source
    if variant == "fp32" or variant not in RECIPES:
        raise QuantizeError(f"unknown variant {variant!r}: use one of {', '.join(RECIPES)}")
    recipe = recipe or RECIPES[variant]
    check_recipe(recipe)
    if (recipe.half or (recipe.method == "gptq" and recipe.bits)) and not calibration:
        raise QuantizeError(f"{variant} needs calibration rows: give token ids of training rows")
    begin = time.perf_counter()
    config = read_config(source)
    if words is None:
        words = {token for row in calibration or () for token in row}
    words = np.unique(np.array(list(words), np.int64)) if recipe.mixed_precision_rows else np.empty(0, np.int64)
    try:
        weights = OnnxWeights(source / "onnx" / model_file("fp32"))
    except ExportError as error:
        raise QuantizeError(str(error)) from None
    rounded, divided = {}, {}
    if recipe.method == "gptq" and recipe.bits:
        weights, rounded = calibrate(source, config, weights, recipe, calibration, words, threads)
        divided = weights.divided
    peaks = measure_peaks(source, calibration, threads, divided) if recipe.half else {}
    scale = residual_scale(peaks) if recipe.half else 1.0
    if out.resolve() != source.resolve():
        copy_side_files(source, out)
    target = out / "onnx" / model_file(variant)
    style = Packed(recipe, rounded, scale, words)
    write_decoder(target, config, weights, style, weights.positions, variant=variant)
    write_transformers_js_config(out)
    return VariantReport(
        variant,
        str(target),
        variant_bytes(out, variant),
        time.perf_counter() - begin,
        asdict(recipe),
        scale,
        peaks,
        op_counts(target),
    )
