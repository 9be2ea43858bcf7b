"""Gemma 3's decoder as an ONNX graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..models.gemma3 import embedding_scale, layer_kinds, rope_frequencies, rope_settings
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
    """
    from onnx import TensorProto, helper

    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    eps, s = config["rms_norm_eps"], style.residual
    stream_eps = eps * s * s
    scale = float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5
    float_type = helper.np_dtype_to_tensor_dtype(style.dtype)
    graph = Graph(path)
    info = helper.make_tensor_value_info
    graph.inputs += [
        info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
        info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        info("num_logits_to_keep", TensorProto.INT64, []),
    ]
    graph.outputs.append(info("logits", TensorProto.FLOAT, ["batch_size", "kept_length", config["vocab_size"]]))
    for i in range(layers):
        for part in ("key", "value"):
            past = ["batch_size", kv_heads, "past_sequence_length", head_dim]
            present = ["batch_size", kv_heads, "total_sequence_length", head_dim]
            graph.inputs.append(info(f"past_key_values.{i}.{part}", float_type, past))
            graph.outputs.append(info(f"present.{i}.{part}", float_type, present))

    def norm_weight(name: str, factor: float = 1.0) -> str:
        return graph.tensor(f"{name}.weight", (weights.norm(name) * np.float32(factor)).astype(style.dtype))

    def norm(x: str, name: str, epsilon: float, factor: float = 1.0) -> str:
        return graph.node("SimplifiedLayerNormalization", [x, norm_weight(name, factor)], name,
                          axis=-1, epsilon=epsilon, stash_type=1)  # fmt: skip

    def add_norm(x: str, y: str, name: str, last: bool = False) -> tuple[str, str]:
        stream = name + ".stream"
        outputs = [name] if last else [name, "", "", stream]
        graph.node("SkipSimplifiedLayerNormalization", [x, y, norm_weight(name)], name, outputs, epsilon=stream_eps)
        return name, stream

    def project(x: str, *names: str) -> list[str]:
        return style.matmul(graph, x, names, weights.matrix)

    counted = graph.node("ReduceSum", ["attention_mask", graph.ints("axis_1", [1])], "mask/count", keepdims=0)
    less = graph.node("Sub", [counted, graph.ints("one", [1])], "mask/last")
    seqlens = graph.node("Cast", [less], "mask/seqlens", to=TensorProto.INT32)
    width = graph.node("Gather", [graph.node("Shape", ["attention_mask"], "mask/shape"), graph.ints("index_1", 1)],
                       "mask/width", axis=0)  # fmt: skip
    total = graph.node("Cast", [width], "mask/total", to=TensorProto.INT32)
    # Not stored: onnxruntime folds these into [positions, head_dim / 2] tables when it loads the model.
    steps = graph.tensor("positions", np.arange(positions, dtype=np.float32)[:, None])
    for kind, (theta, factor) in rope_settings(config).items():
        frequencies = graph.tensor(f"rope.{kind}.frequencies", rope_frequencies(theta, head_dim, factor))
        angles = graph.node("Mul", [steps, frequencies], f"rope.{kind}.angles")
        for op in ("Cos", "Sin"):
            table = graph.node(op, [angles], f"rope.{kind}.{op.lower()}.float")
            graph.node("Cast", [table], f"rope.{kind}.{op.lower()}", to=float_type)

    table = "model.embed_tokens"
    rows = style.embed(graph, "input_ids", table, weights.matrix)
    multiplier = graph.tensor("embedding_scale", np.array(embedding_scale(hidden) * np.float32(s), style.dtype))
    stream = graph.node("Mul", [rows, multiplier], "model.embedded")
    x = norm(stream, "model.layers.0.input_layernorm", stream_eps)
    for i, local in enumerate(layer_kinds(config)):
        layer, kind = f"model.layers.{i}", "local" if local else "global"
        q, k, v = project(x, *(f"{layer}.self_attn.{part}_proj" for part in "qkv"))
        normed = []
        for part, value, count in (("q", q, heads), ("k", k, kv_heads)):
            name = f"{layer}.self_attn.{part}_norm"
            if count == 1:
                normed.append(norm(value, name, eps))
                continue
            split = graph.node("Reshape", [value, graph.ints(f"split_{count}", [0, 0, count, head_dim])], name + ".in")
            shaped = norm(split, name, eps)
            normed.append(
                graph.node("Reshape", [shaped, graph.ints(f"join_{count}", [0, 0, count * head_dim])], name + ".out")
            )
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        attended = graph.node(
            "GroupQueryAttention",
            [*normed, v, *past, seqlens, total, f"rope.{kind}.cos", f"rope.{kind}.sin"],
            f"{layer}.self_attn",
            [f"{layer}.self_attn", f"present.{i}.key", f"present.{i}.value"],
            num_heads=heads,
            kv_num_heads=kv_heads,
            scale=scale,
            do_rotary=1,
            rotary_interleaved=0,
            local_window_size=config["sliding_window"] if local else -1,
        )
        y = norm(*project(attended, f"{layer}.self_attn.o_proj"), f"{layer}.post_attention_layernorm", eps, s)
        x, stream = add_norm(stream, y, f"{layer}.pre_feedforward_layernorm")
        gate, up = project(x, f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
        gate = graph.node("Gelu", [gate], f"{layer}.mlp.act", approximate="tanh")
        both = graph.node("Mul", [gate, up], f"{layer}.mlp.product")
        y = norm(*project(both, f"{layer}.mlp.down_proj"), f"{layer}.post_feedforward_layernorm", eps, s)
        following = "model.norm" if i + 1 == layers else f"model.layers.{i + 1}.input_layernorm"
        x, stream = add_norm(stream, y, following, last=i + 1 == layers)
    start = graph.node("Neg", ["num_logits_to_keep"], "kept/negative")
    start = graph.node("Reshape", [start, graph.ints("axis_1", [1])], "kept/start")
    ends = graph.ints("end", [np.iinfo(np.int64).max])
    kept = graph.node("Slice", [x, start, ends, graph.ints("axis_1", [1])], "kept")
    wide = style.dtype == np.float32  # onnxruntime would copy them in a cast to what they are
    style.head(graph, kept, table, hidden, config["vocab_size"], "logits" if wide else "lm_head")
    if not wide:
        graph.node("Cast", ["lm_head"], "logits", to=TensorProto.FLOAT)
    known = {"exporter": "direct", "residual_scale": repr(s), "positions": str(positions), **metadata}
    graph.save({f"fgtune.{key}": value for key, value in known.items()})
