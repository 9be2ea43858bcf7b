"""Rounding that looks at the user's data: GPTQ, layer by layer, over the calibration rows.

The rows share a long prefix, so they are packed: the prefix once, then every row's own tokens, each attending to the
prefix and to itself. One pass goes through the decoder; each matrix is rounded when its inputs are known, and what
follows sees the rounded result (GPTQ, https://arxiv.org/abs/2210.17323). The inputs of the unrounded model are carried
along: a matrix is first moved to where it makes up for the errors before it (as in https://arxiv.org/abs/2504.02692).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..models.gemma3 import embedding_scale, layer_kinds, rope_frequencies, rope_settings
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

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None) -> np.ndarray:
        """Causal attention to the prefix and the own segment; q, k, v are [tokens, heads (of their own), width]."""
        result = np.empty_like(q)
        share = q.shape[1] // k.shape[1]
        for start, end in self.segments:
            seen = np.r_[0 : self.prefix, start:end] if start else np.arange(end)
            distance = self.positions[start:end, None] - self.positions[seen][None]
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            for head in range(q.shape[1]):
                logits = (q[start:end, head] * np.float32(scale)) @ k[seen, head // share].T
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


class Stream:
    """One of the two passes through the decoder: its residual stream, and what flows beside it."""

    def __init__(self, rows: PackedRows, config: dict, embedded: np.ndarray):
        self.rows, self.config = rows, config
        self.stream = embedded * embedding_scale(config["hidden_size"])
        self.x = self.stream
        self.epsilon = config["rms_norm_eps"]

    def read(self, weight: np.ndarray) -> None:
        """Norm of the stream, the input of the next matrices."""
        self.x = rms_norm(self.stream, weight, self.epsilon)

    def add(self, y: np.ndarray, weight: np.ndarray) -> None:
        """Add a normed branch to the stream."""
        self.stream = self.stream + rms_norm(y, weight, self.epsilon)

    def attend(self, q, k, v, q_norm, k_norm, turn, window) -> None:
        """Attention over flat q, k and v."""
        width = self.config["head_dim"]
        q, k, v = (part.reshape(len(part), -1, width) for part in (q, k, v))
        q = rotate(rms_norm(q, q_norm, self.epsilon), *turn)
        k = rotate(rms_norm(k, k_norm, self.epsilon), *turn)
        scale = float(self.config.get("query_pre_attn_scalar") or width) ** -0.5
        self.x = self.rows.attend(q, k, v, scale, window).reshape(len(q), -1)


def round_decoder(
    config: dict,
    weights,
    rows: PackedRows,
    embedded: tuple[np.ndarray, np.ndarray],
    bits_and_block: Callable[[str], tuple[int, int]],
    asymmetric: float = 1.0,
    percdamp: float = 0.01,
) -> tuple[dict[str, QuantizedMatrix], Stream, Stream]:
    """Round every projection in the order in which data meets them.

    `weights` gives `matrix(name)` and `norm(name)`; `embedded` are the rows of the exact and of the stored embedding;
    `bits_and_block(name)` gives (bits, block). `asymmetric` is how much of the earlier errors a matrix makes up for (0 to 1).
    Returns the rounded matrices, and the passes through the exact and the rounded model up to the final norm.
    """
    exact, ours = (Stream(rows, config, part) for part in embedded)
    found: dict[str, QuantizedMatrix] = {}
    turns = {}
    for kind, (theta, scaling) in rope_settings(config).items():
        angles = rows.positions[:, None].astype(np.float32) * rope_frequencies(theta, config["head_dim"], scaling)
        turns[kind] = (np.cos(angles)[:, None], np.sin(angles)[:, None])

    def both(norm: str, method: str, *branches: np.ndarray) -> None:
        weight = weights.norm(norm)
        for i, stream in enumerate((exact, ours)):
            getattr(stream, method)(*(branch[i] for branch in branches), weight)

    def project(*names: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Round matrices that see the same inputs; their outputs in the exact and in the rounded model."""
        inverse = damped_inverse(ours.x.T @ ours.x, percdamp)
        factor = upper_factor(inverse)
        shift = None
        if asymmetric:
            cross = (exact.x - ours.x).T @ ours.x
            shift = np.float32(asymmetric) * (cross @ inverse.astype(np.float32))
        results = []
        for name in names:
            matrix = np.ascontiguousarray(weights.matrix(name), dtype=np.float32)
            target = matrix if shift is None else matrix + matrix @ shift
            found[name] = round_gptq(target, factor, *bits_and_block(name))
            results.append((exact.x @ matrix.T, ours.x @ dequantize(found[name]).T))
        return results

    for i, local in enumerate(layer_kinds(config)):
        layer = f"model.layers.{i}"
        both(f"{layer}.input_layernorm", "read")
        q, k, v = project(*(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        norms = [weights.norm(f"{layer}.self_attn.{part}_norm") for part in "qk"]
        window = config["sliding_window"] if local else None
        for side, stream in enumerate((exact, ours)):
            stream.attend(q[side], k[side], v[side], *norms, turns["local" if local else "global"], window)
        (y,) = project(f"{layer}.self_attn.o_proj")
        both(f"{layer}.post_attention_layernorm", "add", y)
        both(f"{layer}.pre_feedforward_layernorm", "read")
        gate, up = project(f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
        exact.x, ours.x = gelu(gate[0]) * up[0], gelu(gate[1]) * up[1]
        (y,) = project(f"{layer}.mlp.down_proj")
        both(f"{layer}.post_feedforward_layernorm", "add", y)
    both("model.norm", "read")
    return found, exact, ours
