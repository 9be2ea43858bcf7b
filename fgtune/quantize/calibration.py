"""Activation statistics of the calibration rows, and rounding by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.prefixes import common_prefix
from ..engines.ort import OrtModel
from ..export.layout import model_file
from ..export.weights import OnnxWeights
from ..models.gemma3 import EMBEDDING
from .blocks import QuantizedMatrix, block_size, dequantize, round_nearest
from .gptq import PackedRows, damped_inverse, round_decoder, round_gptq, upper_factor
from .recipes import QuantizeError, Recipe
from .smoothquant import SmoothQuant, smoothable_inputs
from .writer import embedding_parts


def packed_rows(calibration: Sequence[Sequence[int]]) -> PackedRows:
    """Calibration rows as one sequence. Raises QuantizeError for a row without a token to predict."""
    rows = [list(row) for row in calibration]
    if not all(len(row) > 1 for row in rows):
        raise QuantizeError("a calibration row has fewer than two tokens")
    return PackedRows(rows, common_prefix(rows) if len(rows) > 1 else 0)


def calibrate(
    source: Path,
    config: dict,
    weights: OnnxWeights,
    recipe: Recipe,
    calibration: Sequence[Sequence[int]],
    token_ids: Sequence[int] = (),
    threads: int | None = None,
) -> tuple[SmoothQuant, dict[str, QuantizedMatrix]]:
    """The smoothed weights, and their matrices as GPTQ rounds them on the calibration rows, by name.

    The rows enter the decoder through the embedding as it is stored. Raises QuantizeError.
    """
    rows = packed_rows(calibration)
    if not all(recipe.bits_of(f"model.layers.{i}.") for i in range(config["num_hidden_layers"])):
        raise QuantizeError("gptq rounds every projection: give bits to all of them")
    squares, outer = collect_activation_statistics(source, config, rows, threads)
    weights = SmoothQuant(weights, squares, config, recipe.smoothquant_alpha)
    table = weights.matrix(EMBEDDING)
    rounded, stored = _round_embedding(recipe, table, outer, rows.ids, token_ids)

    def quantization_parameters(name: str) -> tuple[int, int]:
        return recipe.bits_of(name), block_size(recipe.block, weights.matrix(name).shape[1])

    embedded = np.array(table[rows.ids])
    rounded |= round_decoder(
        config, weights, rows, (embedded, stored), quantization_parameters, recipe.asymmetric, recipe.percdamp
    )[0]
    return weights, rounded


def _round_embedding(
    recipe: Recipe, table: np.ndarray, outer: np.ndarray, ids: np.ndarray, token_ids: Sequence[int]
) -> tuple[dict[str, QuantizedMatrix], np.ndarray]:
    """What GPTQ rounds of the embedding [vocab, hidden], and the rows `ids` as they are stored, float32.

    The 4-bit table serves twice. As output layer it is rounded by what that sees of the rows, `outer` (sum of x xᵀ,
    [hidden, hidden]). As lookup table it should stay near the exact one: a large `embed_percdamp` adds the identity.
    """
    embedded = np.array(table[ids])
    if not recipe.embed_bits:
        return {}, embedded
    rounded, stored = {}, np.empty_like(embedded)
    factor = upper_factor(damped_inverse(outer, recipe.embed_percdamp)) if recipe.embed_bits == 4 else None
    for part, members, bits, block in embedding_parts(recipe, token_ids, table.shape[1]):
        here = slice(None) if members is None else np.isin(ids, members)
        if bits == 4:
            rounded[part] = round_gptq(table, factor, bits, block)
            stored[here] = dequantize(QuantizedMatrix(*(item[ids] for item in rounded[part])))
        else:
            stored[here] = dequantize(round_nearest(embedded[here], bits, block))
    return rounded, stored


def collect_activation_statistics(
    source: Path, config: dict, rows: PackedRows, threads: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the matrices of the fp32 model see of the rows' own tokens.

    Mean squares of the channels of each of `smoothable_inputs`, and the sum of x xᵀ at the output layer
    [hidden, hidden].
    """
    names = [name for name, _, _ in smoothable_inputs(config["num_hidden_layers"])]
    model = OrtModel(source / "onnx" / model_file("fp32"), threads, [*names, "model.norm"])
    squares, outer, count = dict.fromkeys(names, 0.0), 0.0, 0
    for own, values in run_segments(model, rows):
        if own:
            (state,) = values["model.norm"]
            outer, count = outer + state.T @ state, count + len(state)
            for name in names:
                squares[name] += np.square(values[name][0]).sum(0, dtype=np.float64)
    return {name: total / count for name, total in squares.items()}, outer


def run_segments(model: OrtModel, rows: PackedRows) -> Iterator[tuple[bool, dict[str, np.ndarray]]]:
    """Run the shared prefix once and each row behind it.

    Yields whether it was a row (not the prefix), and the values of the tensors that `model` was asked to give.
    """
    shared = model.empty()
    for start, end in rows.segments:
        _, past = model.run(rows.ids[None, start:end], shared)
        own = bool(start) or not rows.prefix
        if not own:
            shared = past
        yield own, model.collected
