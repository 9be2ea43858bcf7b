"""Blocks of weights that share a scale and a zero point."""

from __future__ import annotations

import numpy as np

from .recipes import QuantizeError


def block_size(wanted: int, width: int) -> int:
    """The largest power of two up to `wanted` that divides `width`. Raises QuantizeError below 16."""
    size = wanted
    while width % size:
        size //= 2
    if size < 16:
        raise QuantizeError(f"a matrix of width {width} cannot be cut into blocks of at least 16")
    return size


def pack(codes: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Codes as MatMulNBits stores them, uint8 [out, in / block, bytes]; the first of two 4-bit codes is low."""
    blocks = codes.reshape(len(codes), -1, block)
    return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points [out, blocks] as MatMulNBits stores them."""
    if bits == 8:
        return zeros
    padded = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return padded[:, 0::2] | (padded[:, 1::2] << 4)


Rounded = tuple[np.ndarray, np.ndarray, np.ndarray]  # codes [out, in], scales [out, blocks], zero points [out, blocks]


SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)  # of a block's range that are tried, at 4 bits


def grid(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (rounded to float16) and zero point of blocks [..., size]: of the shares `SHRINKS` of their range, zero
    included, the one with the least squared error (at 8 bits the whole range)."""
    top = (1 << bits) - 1
    low = np.minimum(blocks.min(-1), 0)
    high = np.maximum(blocks.max(-1), 0)

    def shrunk(share: float) -> tuple[np.ndarray, np.ndarray]:
        scale = ((high - low) * np.float32(share / top)).astype(np.float16).astype(np.float32)
        scale[scale == 0] = 1
        return scale, np.clip(np.rint(-low * np.float32(share) / scale), 0, top)

    if bits == 8:
        return shrunk(1.0)
    best = None
    for share in SHRINKS:
        scale, zero = shrunk(share)
        codes = np.rint(blocks / scale[..., None])
        codes += zero[..., None]
        np.clip(codes, 0, top, out=codes)
        codes -= zero[..., None]
        codes *= scale[..., None]
        codes -= blocks
        error = np.einsum("...i,...i->...", codes, codes)
        if best is None:
            best = [scale, zero, error]
        else:
            better = error < best[2]
            for kept, value in zip(best, (scale, zero, error)):
                kept[better] = value[better]
    return best[0], best[1]


def round_nearest(weight: np.ndarray, bits: int, block: int) -> Rounded:
    """Codes uint8 [out, in], scales float32 and zero points uint8 [out, in / block], by rounding to the nearest."""
    rows, width = weight.shape
    blocks = weight.reshape(rows, width // block, block)
    scale, zero = grid(blocks, bits)
    codes = np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, (1 << bits) - 1)
    return codes.reshape(rows, width).astype(np.uint8), scale, zero.astype(np.uint8)


def dequantize(rounded: Rounded) -> np.ndarray:
    """The float32 matrix [out, in] that codes, scales and zero points stand for."""
    codes, scales, zeros = rounded
    blocks = codes.reshape(*scales.shape, codes.shape[-1] // scales.shape[-1]).astype(np.float32)
    return ((blocks - zeros[..., None]) * scales[..., None]).reshape(codes.shape)
