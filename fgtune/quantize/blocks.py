"""Blocks of weights that share a scale and a zero point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .recipes import QuantizeError

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # fractions of a block's range that are tried, at 4 bits


class QuantizedMatrix(NamedTuple):
    """A matrix in blocks; a weight is (qweight - zero point) · scale.

    `qweight` is uint8 [out, in], one integer a byte; `scales` are float32 and `zeros` uint8, both [out, blocks].
    """

    qweight: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray


def block_size(wanted: int, width: int) -> int:
    """The largest power of two up to `wanted` that divides `width`. Raises QuantizeError below 16."""
    size = wanted
    while width % size:
        size //= 2
    if size < 16:
        raise QuantizeError(f"a matrix of width {width} cannot be cut into blocks of at least 16")
    return size


def pack(qweight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Integers [out, in] as MatMulNBits stores them, uint8 [out, in / block, bytes].

    Two 4-bit integers share a byte, the first in its low half.
    """
    blocks = qweight.reshape(len(qweight), -1, block)
    return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points [out, blocks] as MatMulNBits stores them: a row of 4-bit ones begins with a new byte."""
    if bits == 8:
        return zeros
    padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return padded[:, 0::2] | (padded[:, 1::2] << 4)


def grid(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (rounded to float16) and zero point of blocks [..., size].

    At 8 bits the grid spans a block's range, zero included. At 4 bits it spans that fraction of the range, out of
    `SHRINKS`, which has the least squared error.
    """
    top = (1 << bits) - 1
    low = np.minimum(blocks.min(-1), 0)
    high = np.maximum(blocks.max(-1), 0)

    def shrunk(fraction: float) -> tuple[np.ndarray, np.ndarray]:
        scale = ((high - low) * np.float32(fraction / top)).astype(np.float16).astype(np.float32)
        scale[scale == 0] = 1
        return scale, np.clip(np.rint(-low * np.float32(fraction) / scale), 0, top)

    if bits == 8:
        return shrunk(1.0)
    best = None
    for fraction in SHRINKS:
        scale, zero = shrunk(fraction)
        work = np.rint(blocks / scale[..., None])  # the integers, then what they stand for, then the error: one buffer
        work += zero[..., None]
        np.clip(work, 0, top, out=work)
        work -= zero[..., None]
        work *= scale[..., None]
        work -= blocks
        error = np.einsum("...i,...i->...", work, work)
        if best is None:
            best = [scale, zero, error]
        else:
            better = error < best[2]
            for kept, value in zip(best, (scale, zero, error)):
                kept[better] = value[better]
    return best[0], best[1]


def round_nearest(weight: np.ndarray, bits: int, block: int) -> QuantizedMatrix:
    """Each weight of [out, in] rounded to the nearest point of its block's grid."""
    rows, width = weight.shape
    blocks = weight.reshape(rows, width // block, block)
    scale, zero = grid(blocks, bits)
    qweight = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, (1 << bits) - 1)
    return QuantizedMatrix(qweight.reshape(rows, width).astype(np.uint8), scale, zero.astype(np.uint8))


def dequantize(matrix: QuantizedMatrix) -> np.ndarray:
    """The float32 matrix [out, in] that a quantised one stands for."""
    qweight, scales, zeros = matrix
    blocks = qweight.reshape(*scales.shape, qweight.shape[-1] // scales.shape[-1]).astype(np.float32)
    return ((blocks - zeros[..., None]) * scales[..., None]).reshape(qweight.shape)
