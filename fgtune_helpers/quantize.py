"""Stage 07: smaller variants of the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fgtune.quantize.recipes import RECIPES, Recipe
from fgtune.quantize.variants import VariantReport
from fgtune.quantize.variants import quantize as write_variant

__all__ = ["RECIPES", "quantize"]


def quantize(
    source: Path, variant: str, out: Path, calibration: Sequence, tokens: Iterable[int], recipe: Recipe | None = None
) -> VariantReport:
    """Write `variant` of the fp32 export in `source` to `out`, by `RECIPES[variant]` or another `recipe`.

    `calibration` are training rows (token ids) that the rounding is judged on; `tokens` are the ids whose embedding
    rows get 8 bits in recipes with mixed-precision rows. Raises QuantizeError.
    """
    return write_variant(source, variant, out, calibration, recipe, token_ids=tokens)
