"""Rounding that looks at the user's data: GPTQ, layer by layer, over the calibration rows.

The rows share a long prefix, so they are packed: the prefix once, then every row's own tokens, each attending to the
prefix and to itself. One pass goes through the decoder; each matrix is rounded when its inputs are known, and what
follows sees the rounded result (GPTQ, https://arxiv.org/abs/2210.17323). The inputs of the unrounded model are carried
along: a matrix is first moved to where it makes up for the errors before it (as in https://arxiv.org/abs/2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..models.gemma3 import FINAL_NORM, Gemma3Config, LayerOperations, decoder_layer, layer_tensor
from .blocks import QuantizedMatrix, dequantize, grid


def damped_inverse(hessian: np.ndarray, percdamp: float = 0.01) -> np.ndarray:
    """float64 inverse of `hessian` plus a multiple of its mean diagonal; inputs never seen count as one."""
    matrix = hessian.astype(np.float64)
    diagonal = np.diag(matrix).copy()
    seen = diagonal > 0
    matrix[~seen, ~seen] = 1
    matrix[np.diag_indices(len(matrix))] += percdamp * (diagonal[seen].mean() if seen.any() else 1.0)
    inverse = np.linalg.inv(matrix)
    return (inverse + inverse.T) / 2


def upper_factor(inverse: np.ndarray) -> np.ndarray:
    """The upper triangular float32 factor: inverse = factorᵀ factor."""
    return np.ascontiguousarray(np.linalg.cholesky(inverse).T, dtype=np.float32)


def round_gptq(weight: np.ndarray, factor: np.ndarray, bits: int, block: int) -> QuantizedMatrix:
    """Like `round_nearest`, but each column's error is made up for by the columns after it.

    `factor` is the `upper_factor` of the `damped_inverse` of the sum of x xᵀ over the calibration tokens.
    """
    rows, width = weight.shape
    work = np.array(weight.T, dtype=np.float32, order="C")  # [in, out]: columns become contiguous
    codes = np.empty((width, rows), np.uint8)
    scales = np.empty((width // block, rows), np.float32)
    zeros = np.empty((width // block, rows), np.uint8)
    top = (1 << bits) - 1
    for start in range(0, width, block):
        end = start + block
        part = work[start:end]
        scale, zero = grid(np.ascontiguousarray(part.T), bits)
        scales[start // block], zeros[start // block] = scale, zero
        local = factor[start:end, start:end]
        errors = np.empty_like(part)
        for k in range(block):
            code = np.clip(np.rint(part[k] / scale) + zero, 0, top)
            codes[start + k] = code
            errors[k] = (part[k] - (code - zero) * scale) / local[k, k]
            part[k + 1 :] -= local[k, k + 1 :, None] * errors[k]
        work[end:] -= factor[start:end, end:].T @ errors
    return QuantizedMatrix(*(np.ascontiguousarray(part.T) for part in (codes, scales, zeros)))


class PackedRows:
    """Calibration rows as one sequence: the shared prefix, then each row's own tokens."""

    def __init__(self, rows: Sequence[Sequence[int]], prefix: int):
        own = [list(row[prefix:]) for row in rows]
        self.ids = np.array([*rows[0][:prefix], *(token for row in own for token in row)])
        self.positions = np.array([*range(prefix), *(prefix + i for row in own for i in range(len(row)))])
        self.prefix = prefix
        ends = np.cumsum([prefix, *(len(row) for row in own)])
        self.segments = [(0, prefix)] * bool(prefix) + list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int | None) -> np.ndarray:
        """Causal attention of scaled queries to the prefix and the own segment.

        `q`, `k` and `v` are [tokens, heads (of their own), head_dim]; so is the result, with the heads of `q`.
        """
        result = np.empty_like(q)
        share = q.shape[1] // k.shape[1]
        for start, end in self.segments:
            seen = np.r_[0 : self.prefix, start:end] if start else np.arange(end)
            distance = self.positions[start:end, None] - self.positions[seen][None]
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            for head in range(q.shape[1]):
                logits = q[start:end, head] @ k[seen, head // share].T
                logits[hidden] = -np.inf
                logits -= logits.max(-1, keepdims=True)
                np.exp(logits, out=logits)
                logits /= logits.sum(-1, keepdims=True)
                result[start:end, head] = logits @ v[seen, head // share]
        return result


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """x / sqrt(mean(x²) + epsilon) · weight over the last axis, float32."""
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + np.float32(epsilon)) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary positions: x [tokens, heads, width], cos and sin [tokens, 1, width / 2]."""
    left, right = np.split(x, 2, -1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh approximation, float32."""
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))


Pair = tuple[np.ndarray, np.ndarray]  # the same in the exact and in the rounded model


class RoundingPass(LayerOperations):
    """The exact and the rounded model in lockstep; each matrix is rounded where its inputs are known, into `rounded`.

    All that flows is a `Pair`. It computes with NumPy: another library adds in another order, and so rounds to other
    codes.
    """

    def __init__(
        self,
        config: Gemma3Config,
        weights,
        rows: PackedRows,
        quantization_parameters: Callable[[str], tuple[int, int]],
        asymmetric: float,
        percdamp: float,
    ):
        self.config, self.weights, self.rows = config, weights, rows
        self.quantization_parameters, self.asymmetric, self.percdamp = quantization_parameters, asymmetric, percdamp
        self.rounded: dict[str, QuantizedMatrix] = {}
        self.rope = {}
        for kind, rope in config.rope.items():
            angles = rows.positions[:, None].astype(np.float32) * rope.frequencies(config.head_dim)
            self.rope[kind] = (np.cos(angles)[:, None], np.sin(angles)[:, None])

    def norm(self, layer, name, x: Pair) -> Pair:
        return self.rms_norm(layer_tensor(layer, name), x)

    def rms_norm(self, name: str, x: Pair) -> Pair:
        """The norm whose whole name is `name`."""
        weight = self.weights.norm(name)
        return tuple(rms_norm(part, weight, self.config.rms_norm_eps) for part in x)

    def project(self, layer, names, x: Pair) -> list[Pair]:
        """Round the matrices `names`, which see the same inputs; their outputs in both models."""
        exact, ours = x
        inverse = damped_inverse(ours.T @ ours, self.percdamp)
        factor, shift = upper_factor(inverse), None
        if self.asymmetric:
            cross = (exact - ours).T @ ours
            shift = np.float32(self.asymmetric) * (cross @ inverse.astype(np.float32))
        outputs = []
        for name in (layer_tensor(layer, name) for name in names):
            matrix = np.ascontiguousarray(self.weights.matrix(name), dtype=np.float32)
            target = matrix if shift is None else matrix + matrix @ shift
            self.rounded[name] = round_gptq(target, factor, *self.quantization_parameters(name))
            outputs.append((exact @ matrix.T, ours @ dequantize(self.rounded[name]).T))
        return outputs

    def split_heads(self, x: Pair) -> Pair:
        return tuple(part.reshape(len(part), -1, self.config.head_dim) for part in x)

    def rotate(self, layer, x: Pair, query) -> Pair:
        turned = tuple(rotate(part, *self.rope[self.config.kinds[layer]]) for part in x)
        return tuple(part * np.float32(self.config.attention_scale) for part in turned) if query else turned

    def attend(self, layer, q: Pair, k: Pair, v: Pair) -> Pair:
        window = self.config.window(layer)
        return tuple(self.rows.attend(*parts, window).reshape(len(parts[0]), -1) for parts in zip(q, k, v))

    def gated_gelu(self, gate: Pair, up: Pair) -> Pair:
        return tuple(gelu(a) * b for a, b in zip(gate, up))

    def add(self, stream: Pair, branch: Pair) -> Pair:
        return tuple(a + b for a, b in zip(stream, branch))


def round_decoder(
    config: dict,
    weights,
    rows: PackedRows,
    embedded: Pair,
    quantization_parameters: Callable[[str], tuple[int, int]],
    asymmetric: float = 1.0,
    percdamp: float = 0.01,
) -> tuple[dict[str, QuantizedMatrix], np.ndarray, np.ndarray]:
    """Round every projection in the order in which data meets them.

    `weights` gives `matrix(name)` and `norm(name)`; `embedded` are the rows [tokens, hidden] of the exact and of the
    stored embedding; `quantization_parameters(name)` gives (bits, block). `asymmetric` is how much of the earlier
    errors a matrix makes up for (0 to 1).
    Returns the rounded matrices, and the normed states [tokens, hidden] behind the exact and the rounded layers.
    """
    gemma = Gemma3Config.from_dict(config)
    layers = RoundingPass(gemma, weights, rows, quantization_parameters, asymmetric, percdamp)
    stream = tuple(part * gemma.embedding_scale for part in embedded)
    for i in range(gemma.layers):
        stream = decoder_layer(layers, i, stream)
    return layers.rounded, *layers.rms_norm(FINAL_NORM, stream)
