"""SmoothQuant: activations of even size, so that rounding them costs less (https://arxiv.org/abs/2211.10438).

onnxruntime rounds the inputs of MatMulNBits to 8 bits, each block by its largest value, so one large channel takes the
precision of its neighbours. SmoothQuant divides each channel by a scale and multiplies the weights that read it by the
same scale. The product stays as it is. The division costs nothing where an earlier weight takes it in: here the weight
of a norm, or the rows of `v_proj` and `up_proj`. The output layer, which is the embedding, is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MIN_RMS = 1e-3  # of the root mean square of all channels: a channel below it counts as that


def smoothable_inputs(layers: int) -> Iterator[tuple[str, list[str], str]]:
    """(tensor of the fp32 graph, the matrices that read it, the norm or matrix that takes the division in)."""
    for i in range(layers):
        layer = f"model.layers.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        first, second = f"{layer}.input_layernorm", f"{layer}.pre_feedforward_layernorm"
        yield first, [f"{attention}.{part}_proj" for part in "qkv"], first
        yield attention, [f"{attention}.o_proj"], f"{attention}.v_proj"
        yield second, [f"{mlp}.gate_proj", f"{mlp}.up_proj"], second
        yield f"{mlp}.product", [f"{mlp}.down_proj"], f"{mlp}.up_proj"


class SmoothQuant:
    """`weights` of the same model with smoothed activations; a matrix or norm is made when it is asked for.

    `squares` are the mean squares of the channels of each of `smoothable_inputs`. A channel's scale is its root mean
    square to the power `alpha`, relative to the other channels: with 0 the model stays as it is, with 1 all channels
    become alike. (The paper takes maxima, and those of the weights as well.) `channel_scales` holds, for each tensor
    that is divided, its scales [channels].
    """

    def __init__(self, weights, squares: dict[str, np.ndarray], config: dict, alpha: float):
        self.weights, self.positions = weights, weights.positions
        self.channel_scales: dict[str, np.ndarray] = {}
        self._input_scales: dict[str, np.ndarray] = {}  # by the matrix that reads the input
        kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
        for name, readers, source in smoothable_inputs(config["num_hidden_layers"]):
            square = squares[name]
            grouped = source.endswith(".v_proj")
            if grouped:  # query heads that read the same value head have the same scales
                groups = square.reshape(kv_heads, -1, head_dim)
                square = np.broadcast_to(groups.mean(1, keepdims=True), groups.shape)
            log_rms = np.log(np.maximum(square, square.mean() * MIN_RMS**2)) / 2
            scales = np.exp(alpha * (log_rms - log_rms.mean())).astype(np.float32)
            self.channel_scales[source] = (scales[:, 0] if grouped else scales).reshape(-1)
            self.channel_scales[name] = scales.reshape(-1)
            self._input_scales.update(dict.fromkeys(readers, self.channel_scales[name]))

    def matrix(self, name: str) -> np.ndarray:
        """float32 [out, in] of a projection, [vocab, hidden] of the embedding."""
        matrix = self.weights.matrix(name)
        if name in self._input_scales:
            matrix = matrix * self._input_scales[name]
        return matrix / self.channel_scales[name][:, None] if name in self.channel_scales else matrix

    def norm(self, name: str) -> np.ndarray:
        """What an RMS norm multiplies by, float32."""
        return self.weights.norm(name) / self.channel_scales.get(name, np.float32(1))
