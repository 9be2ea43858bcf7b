"""Even inputs for rounded matrices: what some channels have too much of moves into the weights that read them.

onnxruntime rounds the inputs of MatMulNBits to 8 bits, each block by its largest value, so one large channel takes the
precision of its neighbours. To divide a channel and to multiply the weights that read it changes nothing else, and
costs nothing where something before it takes the division in (SmoothQuant, https://arxiv.org/abs/2211.10438): here the
weight of a norm, or the rows of `v_proj` and `up_proj`. The output layer, which is the embedding, stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SILENT = 1e-3  # of the root mean square of all channels: a channel below it counts as that


def inputs(layers: int) -> Iterator[tuple[str, list[str], str]]:
    """(tensor of the fp32 graph, the matrices that read it, the norm or matrix that takes its division in)."""
    for i in range(layers):
        layer = f"model.layers.{i}"
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        first, second = f"{layer}.input_layernorm", f"{layer}.pre_feedforward_layernorm"
        yield first, [f"{attention}.{part}_proj" for part in "qkv"], first
        yield attention, [f"{attention}.o_proj"], f"{attention}.v_proj"
        yield second, [f"{mlp}.gate_proj", f"{mlp}.up_proj"], second
        yield f"{mlp}.product", [f"{mlp}.down_proj"], f"{mlp}.up_proj"


class SmoothQuant:
    """`weights` of the same model with even inputs; a matrix or norm is made when it is asked for.

    `squares` are the mean squares of the channels of each of `inputs`. A channel is divided by its root mean square
    to the power `share`, relative to the others'; `divided` holds by what, for each tensor that is.
    """

    def __init__(self, weights, squares: dict[str, np.ndarray], config: dict, share: float):
        self.weights, self.positions = weights, weights.positions
        self.divided: dict[str, np.ndarray] = {}
        self._readers: dict[str, np.ndarray] = {}
        kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
        for name, readers, source in inputs(config["num_hidden_layers"]):
            square = squares[name]
            if source.endswith(".v_proj"):  # the heads that share values share their factors
                groups = square.reshape(kv_heads, -1, head_dim)
                square = np.broadcast_to(groups.mean(1, keepdims=True), groups.shape)
            log = np.log(np.maximum(square, square.mean() * SILENT**2)) / 2
            factor = np.exp(share * (log - log.mean())).astype(np.float32)
            self.divided[source] = (factor[:, 0] if source.endswith(".v_proj") else factor).reshape(-1)
            self.divided[name] = factor.reshape(-1)
            self._readers.update(dict.fromkeys(readers, self.divided[name]))

    def matrix(self, name: str) -> np.ndarray:
        """float32 [out, in] of a projection, [vocab, hidden] of the embedding."""
        matrix = self.weights.matrix(name)
        if name in self._readers:
            matrix = matrix * self._readers[name]
        return matrix / self.divided[name][:, None] if name in self.divided else matrix

    def norm(self, name: str) -> np.ndarray:
        """What an RMS norm multiplies by, float32."""
        return self.weights.norm(name) / self.divided.get(name, np.float32(1))
