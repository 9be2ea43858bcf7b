"""Smaller variants of an exported model: fewer bits where they cost nothing, rounding that looks at the user's data.

Every variant is written anew by `write_decoder` from the fp32 export; only how a matrix is stored differs. The
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
from .writer import QuantizedWriter


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


def quantize(
    onnx_dir: str | Path,
    variant: str,
    out_dir: str | Path | None = None,
    calibration: Sequence[Sequence[int]] | None = None,
    recipe: Recipe | None = None,
    threads: int | None = None,
    token_ids: Iterable[int] | None = None,
) -> VariantReport:
    """Write `variant` of the fp32 export in `onnx_dir` to `out_dir` (default: the same folder). Raises QuantizeError.

    `calibration` are token ids of whole training rows; variants that round by GPTQ or compute in float16 need them.
    `token_ids` are the embedding rows that a recipe with `mixed_precision_rows` stores with more bits (default: the
    tokens of `calibration`).
    """
    source = Path(onnx_dir)
    out = Path(out_dir) if out_dir is not None else source
    recipe = _choose_recipe(variant, recipe, calibration)
    begin = time.perf_counter()
    config = read_config(source)
    weights = _open_export(source)
    precise = _high_precision_rows(recipe, token_ids, calibration)
    rounded, channel_scales = {}, {}
    if _uses_gptq(recipe):
        weights, rounded = calibrate(source, config, weights, recipe, calibration, precise, threads)
        channel_scales = weights.channel_scales
    peaks = measure_peaks(source, calibration, threads, channel_scales) if recipe.half else {}
    scale = residual_scale(peaks) if recipe.half else 1.0
    if out.resolve() != source.resolve():
        copy_side_files(source, out)
    target = out / "onnx" / model_file(variant)
    writer = QuantizedWriter(recipe, rounded, scale, precise)
    write_decoder(target, config, weights, writer, weights.positions, variant=variant)
    write_transformers_js_config(out)
    seconds = time.perf_counter() - begin
    size, ops = variant_bytes(out, variant), op_counts(target)
    return VariantReport(variant, str(target), size, seconds, asdict(recipe), scale, peaks, ops)


def _choose_recipe(variant: str, recipe: Recipe | None, calibration: Sequence[Sequence[int]] | None) -> Recipe:
    """The recipe given, or the variant's own. Raises QuantizeError where it cannot be followed."""
    if variant not in RECIPES:
        raise QuantizeError(f"unknown variant {variant!r}: use one of {', '.join(RECIPES)}")
    recipe = recipe or RECIPES[variant]
    check_recipe(recipe)
    if (recipe.half or _uses_gptq(recipe)) and not calibration:
        raise QuantizeError(f"{variant} needs calibration rows: give token ids of training rows")
    return recipe


def _uses_gptq(recipe: Recipe) -> bool:
    return recipe.method == "gptq" and bool(recipe.bits)


def _open_export(source: Path) -> OnnxWeights:
    try:
        return OnnxWeights(source / "onnx" / model_file("fp32"))
    except ExportError as error:
        raise QuantizeError(str(error)) from None


def _high_precision_rows(
    recipe: Recipe, token_ids: Iterable[int] | None, calibration: Sequence[Sequence[int]] | None
) -> np.ndarray:
    """The embedding rows that get more bits, sorted, int64; none where the recipe wants none."""
    if not recipe.mixed_precision_rows:
        return np.empty(0, np.int64)
    if token_ids is None:
        token_ids = {token for row in calibration or () for token in row}
    return np.unique(np.array(list(token_ids), np.int64))
