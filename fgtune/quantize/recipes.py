"""How each variant stores its matrices."""

from __future__ import annotations

from dataclasses import dataclass, field


class QuantizeError(RuntimeError):
    """A variant cannot be made, or would not be right; the message is one line."""


@dataclass(frozen=True)
class Recipe:
    """How a variant stores its matrices.

    `bits` are 4, 8 or 0 (not quantised); `block` weights share a scale. `bits_overrides` maps a part of a matrix's name
    (`v_proj`, `layers.3.`) to the bits it gets instead. `method` `gptq` rounds against the calibration rows, `rtn`
    rounds to the nearest. `embed_bits` and `embed_block` are for the embedding; with `mixed_precision_rows` the rows of
    the user's own tokens have 8 bits in an embedding of 4. `half` computes in float16 with a scaled residual stream.
    `accuracy_level` is MatMulNBits': 4 rounds activations to 8 bits, which decodes 20 to 60 times faster on CPUs than
    0, floats (measured here, see benchmarks/onnx.py).

    The rest is for `gptq`. `asymmetric` and `percdamp` are explained in `gptq.round_decoder`. `embed_percdamp` is the
    `percdamp` of a 4-bit embedding: a large one keeps it good as a lookup table too. `smoothquant_alpha` is the alpha
    of `smoothquant.SmoothQuant`, 0 for none.
    """

    bits: int = 4
    block: int = 32
    method: str = "gptq"
    bits_overrides: dict[str, int] = field(default_factory=dict)
    embed_bits: int = 8
    embed_block: int = 128
    mixed_precision_rows: bool = False
    half: bool = False
    accuracy_level: int = 4
    asymmetric: float = 1.0
    percdamp: float = 0.01
    embed_percdamp: float = 1.0
    smoothquant_alpha: float = 0.0

    def bits_of(self, name: str) -> int:
        """Bits of the matrix `name`."""
        return next((bits for part, bits in self.bits_overrides.items() if part in name), self.bits)


#: Where 8 bits are cheap and matter: keys and values, and one of the early layers (2.5 MB).
SENSITIVE_MATRICES = {"k_proj": 8, "v_proj": 8, "layers.3.": 8}
#: Measured by benchmarks/onnx.py. Most of the weights are the embedding's: 4 bits there and 8 elsewhere are smaller and
#: nearer to fp32 than the other way round, if both are rounded against the rows. 8 bits for the few thousand tokens of
#: the user's data cost 6 MB and leave a quarter of the divergence in answers. SmoothQuant pays where most of the
#: divergence comes from rounding activations, in int8.
RECIPES = {
    "fp16": Recipe(bits=0, embed_bits=0, half=True),
    "int8": Recipe(bits=8, embed_block=64, smoothquant_alpha=0.5),
    "q4": Recipe(bits=8, block=64, embed_bits=4, mixed_precision_rows=True),
    "q4f16": Recipe(bits=8, embed_bits=4, embed_block=32, mixed_precision_rows=True, half=True),
    "q4s": Recipe(bits_overrides=SENSITIVE_MATRICES, embed_bits=4, mixed_precision_rows=True),
}


def check_recipe(recipe: Recipe) -> None:
    """Raise QuantizeError for a recipe that cannot be written."""
    for bits in (recipe.bits, recipe.embed_bits, *recipe.bits_overrides.values()):
        if bits not in (0, 4, 8):
            raise QuantizeError(f"bits must be 4 or 8 (0 for none), not {bits}")
    for block in (recipe.block, recipe.embed_block):
        if block not in (16, 32, 64, 128, 256):
            raise QuantizeError(f"a block must hold 16, 32, 64, 128 or 256 weights, not {block}")
    if recipe.mixed_precision_rows and recipe.embed_bits != 4:
        raise QuantizeError(f"mixed_precision_rows is for an embedding of 4 bits, not {recipe.embed_bits}")
    if not 0 <= recipe.smoothquant_alpha <= 1:
        raise QuantizeError(f"smoothquant_alpha must be between 0 and 1, not {recipe.smoothquant_alpha}")
    if recipe.method not in ("rtn", "gptq"):
        raise QuantizeError(f"method must be 'rtn' or 'gptq', not {recipe.method!r}")
