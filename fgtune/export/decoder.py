"""Gemma 3's decoder as an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..models.gemma3 import (
    EMBEDDING,
    FINAL_NORM,
    KEY_NORM,
    QUERY_NORM,
    Gemma3Config,
    LayerOperations,
    decoder_layer,
    layer_tensor,
)
from .graph import Graph
from .weights import SafetensorsWeights
from .writers import Float32Writer


def write_decoder(
    path: Path, config: dict, weights: SafetensorsWeights, style: Float32Writer, positions: int, **metadata: str
) -> None:
    """Write Gemma 3's decoder with past keys and values to `path` (.onnx) and `<path>_data`.

    Inputs: `input_ids`, `attention_mask` [batch, past + sequence] (ones first: pad on the right), `num_logits_to_keep`
    (scalar: how many last positions get logits, 0 for all), `past_key_values.N.key` and `.value`
    [batch, kv heads, past, head_dim]. Outputs: `logits` float32 [batch, kept, vocab], `present.N.key` and `.value`.
    Raises ExportError for a rope scaling that is not known here.
    """
    gemma, graph = Gemma3Config.from_dict(config), Graph(path)
    declare_inputs_and_outputs(graph, gemma, style.dtype)
    lengths = write_lengths(graph)
    write_rotary_tables(graph, gemma, positions, style.dtype)
    layers = GraphLayers(graph, gemma, weights, style, lengths)
    stream = layers.embed("input_ids")
    for i in range(gemma.layers):
        stream = decoder_layer(layers, i, stream)
    write_head(graph, gemma, style, layers.final_norm(stream))
    known = {"exporter": "direct", "residual_scale": repr(style.residual), "positions": str(positions), **metadata}
    graph.save({f"fgtune.{key}": value for key, value in known.items()})


def declare_inputs_and_outputs(graph: Graph, config: Gemma3Config, dtype: np.dtype) -> None:
    """Names, types and shapes of what the graph takes and gives; keys and values are of `dtype`."""
    from onnx import TensorProto, helper

    info, float_type = helper.make_tensor_value_info, helper.np_dtype_to_tensor_dtype(dtype)
    graph.inputs += [
        info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        info("num_logits_to_keep", TensorProto.INT64, []),
    ]
    graph.outputs.append(info("logits", TensorProto.FLOAT, ["batch_size", "kept_length", config.vocab_size]))
    for i in range(config.layers):
        for part in ("key", "value"):
            past = ["batch_size", config.kv_heads, "past_sequence_length", config.head_dim]
            present = ["batch_size", config.kv_heads, "total_sequence_length", config.head_dim]
            graph.inputs.append(info(f"past_key_values.{i}.{part}", float_type, past))
            graph.outputs.append(info(f"present.{i}.{part}", float_type, present))


def write_lengths(graph: Graph) -> tuple[str, str]:
    """What GroupQueryAttention reads of the mask: the index of each row's last token, and the width of all rows."""
    from onnx import TensorProto

    counted = graph.node("ReduceSum", ["attention_mask", graph.ints("axis_1", [1])], "mask/count", keepdims=0)
    less = graph.node("Sub", [counted, graph.ints("one", [1])], "mask/last")
    seqlens = graph.node("Cast", [less], "mask/seqlens", to=TensorProto.INT32)
    shape = graph.node("Shape", ["attention_mask"], "mask/shape")
    width = graph.node("Gather", [shape, graph.ints("index_1", 1)], "mask/width", axis=0)
    return seqlens, graph.node("Cast", [width], "mask/total", to=TensorProto.INT32)


def write_rotary_tables(graph: Graph, config: Gemma3Config, positions: int, dtype: np.dtype) -> None:
    """`rope.<kind>.cos` and `.sin` [positions, head_dim / 2] for both kinds of layers.

    The tables are not stored: onnxruntime folds these nodes into them when it loads the model.
    """
    from onnx import helper

    float_type = helper.np_dtype_to_tensor_dtype(dtype)
    steps = graph.tensor("positions", np.arange(positions, dtype=np.float32)[:, None])
    for kind, rope in config.rope.items():
        frequencies = graph.tensor(f"rope.{kind}.frequencies", rope.frequencies(config.head_dim))
        angles = graph.node("Mul", [steps, frequencies], f"rope.{kind}.angles")
        for op in ("Cos", "Sin"):
            table = graph.node(op, [angles], f"rope.{kind}.{op.lower()}.float")
            graph.node("Cast", [table], f"rope.{kind}.{op.lower()}", to=float_type)


def write_head(graph: Graph, config: Gemma3Config, style: Float32Writer, x: str) -> None:
    """Logits of the last `num_logits_to_keep` positions of the normed states `x`, as float32."""
    from onnx import TensorProto

    start = graph.node("Neg", ["num_logits_to_keep"], "kept/negative")
    start = graph.node("Reshape", [start, graph.ints("axis_1", [1])], "kept/start")
    ends = graph.ints("end", [np.iinfo(np.int64).max])
    kept = graph.node("Slice", [x, start, ends, graph.ints("axis_1", [1])], "kept")
    float32 = style.dtype == np.float32  # onnxruntime would copy the logits in a cast to what they are
    style.head(graph, kept, EMBEDDING, config.hidden_size, config.vocab_size, "logits" if float32 else "lm_head")
    if not float32:
        graph.node("Cast", ["lm_head"], "logits", to=TensorProto.FLOAT)


@dataclass
class ResidualStream:
    """The residual stream: a tensor, and a branch that is still to be added.

    The norm that follows adds it: both are one SkipSimplifiedLayerNormalization.
    """

    tensor: str
    branch: str | None = None


class GraphLayers(LayerOperations):
    """The operations of a layer as nodes of a graph; what flows between them are names of tensors.

    GroupQueryAttention rotates and scales by itself, and takes heads side by side. The residual stream is scaled by
    `style.residual`: branches are scaled with it, and the epsilons of its norms by the square.
    """

    def __init__(
        self,
        graph: Graph,
        config: Gemma3Config,
        weights: SafetensorsWeights,
        style: Float32Writer,
        lengths: tuple[str, str],
    ):
        self.graph, self.config, self.weights, self.style, self.lengths = graph, config, weights, style, lengths
        self.scale, self.epsilon = style.residual, config.rms_norm_eps
        self.stream_epsilon = self.epsilon * self.scale * self.scale

    def embed(self, ids: str) -> ResidualStream:
        """The stream that the layers begin with: scaled embeddings of `ids`."""
        rows = self.style.embed(self.graph, ids, EMBEDDING, self.weights.matrix)
        factor = np.array(self.config.embedding_scale * np.float32(self.scale), self.style.dtype)
        multiplier = self.graph.tensor("embedding_scale", factor)
        return ResidualStream(self.graph.node("Mul", [rows, multiplier], "model.embedded"))

    def norm(self, layer, name, x):
        whole = layer_tensor(layer, name)
        if isinstance(x, ResidualStream):
            return self._stream_norm(whole, x)
        if name in (QUERY_NORM, KEY_NORM):
            return self._head_norm(whole, x, self.config.heads if name == QUERY_NORM else self.config.kv_heads)
        return self._norm(whole, x, self.epsilon, self.scale)

    def final_norm(self, stream: ResidualStream) -> str:
        """The norm behind the last layer; nothing reads the stream after it."""
        inputs = [stream.tensor, stream.branch, self._norm_weight(FINAL_NORM)]
        return self.graph.node("SkipSimplifiedLayerNormalization", inputs, FINAL_NORM, epsilon=self.stream_epsilon)

    def _stream_norm(self, name: str, stream: ResidualStream) -> str:
        if stream.branch is None:
            return self._norm(name, stream.tensor, self.stream_epsilon)
        inputs = [stream.tensor, stream.branch, self._norm_weight(name)]
        stream.tensor, stream.branch = f"{name}.stream", None
        return self.graph.node("SkipSimplifiedLayerNormalization", inputs, name, [name, "", "", stream.tensor],
                               epsilon=self.stream_epsilon)  # fmt: skip

    def _head_norm(self, name: str, x: str, heads: int) -> str:
        """The norm of each head, of a tensor in which the heads stand side by side."""
        if heads == 1:
            return self._norm(name, x, self.epsilon)
        width = self.config.head_dim
        apart, joined = [0, 0, heads, width], [0, 0, heads * width]
        split = self.graph.node("Reshape", [x, self.graph.ints(f"split_{heads}", apart)], name + ".in")
        normed = self._norm(name, split, self.epsilon)
        return self.graph.node("Reshape", [normed, self.graph.ints(f"join_{heads}", joined)], name + ".out")

    def _norm(self, name: str, x: str, epsilon: float, factor: float = 1.0) -> str:
        inputs = [x, self._norm_weight(name, factor)]
        return self.graph.node("SimplifiedLayerNormalization", inputs, name, axis=-1, epsilon=epsilon, stash_type=1)

    def _norm_weight(self, name: str, factor: float = 1.0) -> str:
        weight = (self.weights.norm(name) * np.float32(factor)).astype(self.style.dtype)
        return self.graph.tensor(f"{name}.weight", weight)

    def project(self, layer, names, x):
        return self.style.matmul(self.graph, x, [layer_tensor(layer, name) for name in names], self.weights.matrix)

    def split_heads(self, x):
        return x

    def rotate(self, layer, x, query):
        return x

    def attend(self, layer, q, k, v):
        config, name, kind = self.config, layer_tensor(layer, "self_attn"), self.config.kinds[layer]
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        return self.graph.node(
            "GroupQueryAttention",
            [q, k, v, *past, *self.lengths, f"rope.{kind}.cos", f"rope.{kind}.sin"],
            name,
            [name, f"present.{layer}.key", f"present.{layer}.value"],
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            scale=config.attention_scale,
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=config.window(layer) or -1,
        )

    def gated_gelu(self, gate, up):
        mlp = gate.removesuffix(".gate_proj")
        active = self.graph.node("Gelu", [gate], f"{mlp}.act", approximate="tanh")
        return self.graph.node("Mul", [active, up], f"{mlp}.product")

    def add(self, stream, branch):
        return ResidualStream(stream.tensor, branch)
