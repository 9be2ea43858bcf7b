"""Smaller variants: recipes, calibration, GPTQ, SmoothQuant, and weights stored in blocks."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "blocks": ["QuantizedMatrix", "dequantize", "round_nearest"],
        "gptq": ["round_decoder", "round_gptq"],
        "recipes": ["QuantizeError", "RECIPES", "Recipe"],
        "smoothquant": ["SmoothQuant"],
        "variants": ["VariantReport", "quantize"],
        "writer": ["QuantizedWriter"],
    },
)
