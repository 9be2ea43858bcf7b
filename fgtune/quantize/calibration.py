"""What the calibration rows say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.prefixes import common_prefix
from ..engines.ort import OrtModel
from ..export.layout import model_file
from ..export.weights import EMBEDDING, OnnxWeights
from .blocks import Rounded, block_size, dequantize, round_nearest
from .gptq import PackedRows, damped_inverse, round_decoder, round_gptq, upper_factor
from .recipes import QuantizeError, Recipe
from .smoothquant import SmoothQuant, inputs
from .writer import embedding_parts


def packed_rows(calibration: Sequence[Sequence[int]]) -> PackedRows:
    """Calibration rows as one sequence. Raises QuantizeError for a row that has nothing to look at."""
    rows = [list(row) for row in calibration]
    if not all(len(row) > 1 for row in rows):
        raise QuantizeError("a calibration row has fewer than two tokens")
    return PackedRows(rows, common_prefix(rows) if len(rows) > 1 else 0)


def calibrate(
    source: Path, config: dict, weights: OnnxWeights, recipe: Recipe, calibration, words=(), threads: int | None = None
) -> tuple[SmoothQuant, dict[str, Rounded]]:
    """The weights for even inputs, and every projection of them rounded by GPTQ on the calibration rows.

    The rows enter through the embedding as it is stored. A 4-bit embedding is rounded for both of its uses: as output
    layer by what that sees of the rows, and, since `embed_percdamp` adds as much of the identity, as lookup table.
    """
    rows = packed_rows(calibration)
    if not all(recipe.bits_of(f"model.layers.{i}.") for i in range(config["num_hidden_layers"])):
        raise QuantizeError("gptq rounds every projection: give bits to all of them")
    squares, outer = collect_activation_statistics(source, config, rows, threads)
    weights = SmoothQuant(weights, squares, config, recipe.smooth)
    embedded = np.array(weights.matrix(EMBEDDING)[rows.ids])
    stored, found = embedded, {}
    if recipe.embed_bits == 4:
        factor = upper_factor(damped_inverse(outer, recipe.embed_percdamp))
    if recipe.embed_bits:
        table, stored = weights.matrix(EMBEDDING), np.empty_like(embedded)
        for part, members, bits, block in embedding_parts(recipe, words, table.shape[1]):
            here = slice(None) if members is None else np.isin(rows.ids, members)
            if bits == 4:
                found[part] = round_gptq(table, factor, bits, block)
                stored[here] = dequantize(tuple(item[rows.ids] for item in found[part]))
            else:
                stored[here] = dequantize(round_nearest(embedded[here], bits, block))

    def bits_and_block(name: str) -> tuple[int, int]:
        return recipe.bits_of(name), block_size(recipe.block, weights.matrix(name).shape[1])

    found |= round_decoder(
        config, weights, rows, (embedded, stored), bits_and_block, recipe.asymmetric, recipe.percdamp
    )[0]
    return weights, found


def collect_activation_statistics(
    source: Path, config: dict, rows: PackedRows, threads: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the matrices of the fp32 model see of the rows' own tokens.

    Mean squares of the channels of each of `smooth.inputs`, and the sum of x xᵀ at the output layer [hidden, hidden].
    """
    names = [name for name, _, _ in inputs(config["num_hidden_layers"])]
    model = OrtModel(source / "onnx" / model_file("fp32"), threads, [*names, "model.norm"])
    squares, outer, count = dict.fromkeys(names, 0.0), 0.0, 0
    for own, tapped in run_segments(model, rows):
        if own:
            (state,) = tapped["model.norm"]
            outer, count = outer + state.T @ state, count + len(state)
            for name in names:
                squares[name] += np.square(tapped[name][0]).sum(0, dtype=np.float64)
    return {name: total / count for name, total in squares.items()}, outer


def run_segments(model: OrtModel, rows: PackedRows) -> Iterator[tuple[bool, dict[str, np.ndarray]]]:
    """Run the shared prefix once and each row behind it; yields whether it was a row, and what was tapped."""
    shared = model.empty()
    for start, end in rows.segments:
        _, past = model.run(rows.ids[None, start:end], shared)
        own = bool(start) or not rows.prefix
        if not own:
            shared = past
        yield own, model.collected
