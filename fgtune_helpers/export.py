"""Fused weights to ONNX: one small writer for Gemma 3's decoder, in the layout that transformers.js reads.

The graph is written straight from the safetensors, tensor by tensor, so that no second copy of the model is ever in
memory. It uses the fused operators that onnxruntime has in Python, Node and the browser alike (GroupQueryAttention,
SkipSimplifiedLayerNormalization). The embedding is stored once and serves the head too.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

EXPORTERS = ("direct", "optimum")
#: variant -> (`model_file_name`, `dtype`) to give to transformers.js; the two make the name of the file.
LOADING = {
    "fp32": ("model", "fp32"),
    "fp16": ("model", "fp16"),
    "int8": ("model", "int8"),
    "q4": ("model", "q4"),
    "q4f16": ("model", "q4f16"),
    "q4s": ("model_q4s", "fp32"),  # transformers.js has no dtype of that name: the file is named whole
}
#: What transformers.js should load where nothing is said (device -> dtype).
DEVICE_DTYPES = {"wasm": "q4", "webgpu": "q4f16", "cpu": "q4"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
INLINE_BYTES = 8192  # smaller tensors stay in the .onnx file
OPSET, IR_VERSION = 21, 10


class ExportError(RuntimeError):
    """The model cannot be exported; the message is one line."""


@dataclass(frozen=True)
class ExportReport:
    """What an export made: `bytes` of the .onnx and its data, `seconds`, `peak_mb` of the process, operator counts."""

    exporter: str
    path: str
    bytes: int
    seconds: float
    peak_mb: float
    max_positions: int
    ops: dict[str, int]

    def as_dict(self) -> dict:
        """The report as plain JSON values."""
        return asdict(self)


def loading(variant: str, wide: bool = False) -> tuple[str, str]:
    """What transformers.js takes as (model_file_name, dtype); `wide` is the graph of `wide.py`. Raises ExportError."""
    if variant not in LOADING:
        raise ExportError(f"unknown variant {variant!r}: use one of {', '.join(LOADING)}")
    name, dtype = LOADING[variant]
    return f"{name}_wide" if wide else name, dtype


def model_file(variant: str, wide: bool = False) -> str:
    """`q4` -> `model_q4.onnx`, the name that transformers.js asks for. Raises ExportError for an unknown variant."""
    name, dtype = loading(variant, wide)
    return f"{name}.onnx" if dtype == "fp32" else f"{name}_{dtype}.onnx"


def export_onnx(
    fused_dir: str | Path, out_dir: str | Path, exporter: str = "direct", max_positions: int = 4096
) -> ExportReport:
    """Write `fused_dir` (a transformers folder) as fp32 ONNX to `out_dir`; no network. Raises ExportError.

    `direct` writes the graph itself; `optimum` runs optimum-onnx in a process of its own, as the reference.
    """
    fused, out = Path(fused_dir), Path(out_dir)
    if exporter not in EXPORTERS:
        raise ExportError(f"unknown exporter {exporter!r}: use one of {', '.join(EXPORTERS)}")
    config = read_config(fused)
    limit = int(config.get("max_position_embeddings") or max_positions)
    positions = min(max_positions, limit)
    if positions < 1:
        raise ExportError(f"max_positions must be at least 1, not {max_positions}")
    begin = time.perf_counter()
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    target = out / "onnx" / model_file("fp32")
    if exporter == "direct":
        weights = SafetensorsWeights(fused)
        write_decoder(target, config, weights, Float32(), positions)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        positions = limit
        peak = _run_optimum(fused, out)
    write_side_files(fused, out, positions)
    announce(out)
    seconds = time.perf_counter() - begin
    peak_mb = peak / (1e6 if sys.platform == "darwin" else 1e3)
    return ExportReport(
        exporter, str(target), variant_bytes(out, "fp32"), seconds, peak_mb, positions, op_counts(target)
    )


# ---------------------------------------------------------------- what is read


def read_config(folder: Path) -> dict:
    """`config.json` of a gemma3_text model. Raises ExportError when it is none, or has what the writer does not do."""
    path = folder / "config.json"
    if not path.exists():
        raise ExportError(f"{folder} has no config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("model_type") != "gemma3_text":
        raise ExportError(f"{path} is a {config.get('model_type')!r} model, not 'gemma3_text'")
    if config.get("tie_word_embeddings") is False:
        raise ExportError(f"{path} has a head of its own; only tied embeddings are exported")
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if config.get(key):
            raise ExportError(f"{path} sets {key}, which is not exported")
    return config


class SafetensorsWeights:
    """float32 arrays by their Hugging Face name, read one at a time from every `*.safetensors` of a folder."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            handle = safe_open(str(path), framework="pt")
            self._files.update(dict.fromkeys(handle.keys(), handle))
        if not self._files:
            raise ExportError(f"{folder} has no .safetensors file")
        left = [name for name in self._files if ".lora_" in name or name.endswith((".scales", ".biases"))]
        if left:
            raise ExportError(f"{folder} is not fused, or is quantised: it holds {left[0]!r}")

    def matrix(self, name: str) -> np.ndarray:
        """The tensor `name`.weight as float32 [out, in]. Raises ExportError when it is missing."""
        import torch

        if f"{name}.weight" not in self._files:
            raise ExportError(f"the weights have no tensor {name + '.weight'!r}")
        return self._files[f"{name}.weight"].get_tensor(f"{name}.weight").to(torch.float32).numpy()

    def norm(self, name: str) -> np.ndarray:
        """What an RMS norm multiplies by: 1 + weight, float32."""
        return 1 + self.matrix(name)


def layer_kinds(config: dict) -> list[bool]:
    """True for each layer with a sliding window."""
    kinds = config.get("layer_types")
    if kinds:
        return [kind == "sliding_attention" for kind in kinds]
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
    return [(i + 1) % pattern != 0 for i in range(config["num_hidden_layers"])]


def embedding_scale(hidden_size: int) -> np.float32:
    """sqrt(hidden_size) rounded to bfloat16, as Gemma multiplies its embedding (25.25 for 640)."""
    from ml_dtypes import bfloat16

    return np.float32(bfloat16(hidden_size**0.5))


def rope_frequencies(theta: float, head_dim: int, factor: float = 1.0) -> np.ndarray:
    """Radians per position, float32 [1, head_dim / 2]."""
    inverse = np.float32(1) / np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    return (inverse / np.float32(factor))[None]


def rope_settings(config: dict) -> dict[str, tuple[float, float]]:
    """(theta, linear factor) of the `global` and the `local` layers."""
    found = config.get("rope_parameters") or {}
    if "full_attention" in found:  # transformers 5
        wide, local = found["full_attention"], found["sliding_attention"]
        theta, base, scaling = wide["rope_theta"], local["rope_theta"], wide
    else:
        theta, base = config["rope_theta"], config["rope_local_base_freq"]
        scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ExportError(f"rope scaling {kind!r} is not exported")
    factor = float(scaling["factor"]) if kind == "linear" else 1.0
    return {"global": (float(theta), factor), "local": (float(base), 1.0)}


# ---------------------------------------------------------------- what is written


class Graph:
    """An ONNX graph under construction; large tensors go straight to `<path>_data`, never kept in memory.

    Until `save` that file is called `.part`: an export that is killed leaves no graph without its data.
    """

    def __init__(self, path: Path):
        self.path = path
        self.nodes, self.initializers = [], []
        self.inputs, self.outputs = [], []
        self._names: set[str] = set()
        self.data = path.with_name(path.name + "_data")
        self._part = self.data.with_name(self.data.name + ".part")
        self._file = open(self._part, "wb")  # closed by save

    def tensor(self, name: str, value: np.ndarray) -> str:
        """Store `value` once under `name`; give the name back."""
        from onnx import TensorProto, helper, numpy_helper

        if name in self._names:
            return name
        self._names.add(name)
        if value.nbytes < INLINE_BYTES:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
            return name
        offset = self._file.seek(-self._file.tell() % 64, os.SEEK_CUR)
        np.ascontiguousarray(value).tofile(self._file)
        proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, text in (("location", self.data.name), ("offset", offset), ("length", value.nbytes)):
            proto.external_data.add(key=key, value=str(text))
        self.initializers.append(proto)
        return name

    def ints(self, name: str, values: list[int] | int) -> str:
        """Store a small int64 constant."""
        return self.tensor(name, np.array(values, dtype=np.int64))

    def node(self, op: str, inputs: list[str], name: str, outputs: list[str] | None = None, **attributes) -> str:
        """Append a node; its first output is `name` unless `outputs` are given. Returns the first output."""
        from onnx import helper

        outputs = outputs or [name]
        domain = "com.microsoft" if op in MICROSOFT_OPS else ""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name + "/" + op, domain=domain, **attributes))
        return outputs[0]

    def save(self, metadata: dict[str, str]) -> None:
        """Write the .onnx file."""
        from onnx import helper, save

        self._file.close()
        graph = helper.make_graph(self.nodes, "gemma3_text", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fgtune")
        helper.set_model_props(model, metadata)
        self.path.unlink(missing_ok=True)
        self._part.replace(self.data)
        save(model, str(self.path))
        if self.data.stat().st_size == 0:
            self.data.unlink()


MICROSOFT_OPS = {"GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"}


class Float32:
    """How a variant stores its matrices and computes: here float32 throughout. Variants override the methods.

    `residual` is the power of two by which the residual stream is scaled: nothing else changes, because everything
    that reads the stream passes an RMS norm whose epsilon is scaled by its square.
    """

    dtype = np.dtype(np.float32)
    residual = 1.0

    def matmul(self, graph: Graph, x: str, names: Sequence[str], matrix: Callable[[str], np.ndarray]) -> list[str]:
        """x @ weight.T for each of the projections that read `x`; `matrix(name)` is float32 [out, in]."""
        stored = [graph.tensor(f"{name}.weight", matrix(name).T.astype(self.dtype, copy=False)) for name in names]
        return [graph.node("MatMul", [x, weight], name) for weight, name in zip(stored, names, strict=True)]

    def embed(self, graph: Graph, ids: str, name: str, matrix: Callable[[str], np.ndarray]) -> str:
        """Rows `ids` of the embedding, [batch, sequence, hidden]."""
        stored = graph.tensor(f"{name}.weight", matrix(name).astype(self.dtype, copy=False))
        return graph.node("Gather", [stored, ids], name)

    def head(self, graph: Graph, x: str, name: str, hidden: int, vocab: int, out: str) -> None:
        """`out` = x @ embedding.T over the table that `embed` stored."""
        table = f"{name}.weight"
        flat = graph.node("Reshape", [x, graph.ints("head.rows", [-1, hidden])], "lm_head/flat")
        product = graph.node("Gemm", [flat, table], "lm_head/product", transB=1)
        lead = graph.node("Shape", [x], "lm_head/lead", start=0, end=2)
        shape = graph.node("Concat", [lead, graph.ints("head.vocab", [vocab])], "lm_head/shape", axis=0)
        graph.node("Reshape", [product, shape], "lm_head", [out])


def write_decoder(
    path: Path, config: dict, weights: SafetensorsWeights, style: Float32, positions: int, **metadata: str
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


# ---------------------------------------------------------------- the folder around it


def write_side_files(fused: Path, out: Path, positions: int) -> None:
    """Copy the tokenizer, put the chat template into its config, and write both config files."""
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (fused / name).exists()]
    if missing:
        raise ExportError(f"{fused} has no {missing[0]}")
    for name in TOKENIZER_FILES:
        if (fused / name).exists() and fused.resolve() != out.resolve():
            shutil.copyfile(fused / name, out / name)
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = out / "chat_template.jinja"
    if template.exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    elif "chat_template" in settings:
        template.write_text(settings["chat_template"], encoding="utf-8")
    else:
        raise ExportError(f"{fused} has no chat template")
    _write_json(out / "tokenizer_config.json", settings)
    config = json.loads((fused / "config.json").read_text(encoding="utf-8"))
    generation = fused / "generation_config.json"
    given = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    ids = {key: given.get(key, config.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config["max_position_embeddings"] = positions
    config.pop("transformers.js_config", None)
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", {"do_sample": False, **given, **ids})


def announce(out: Path) -> dict:
    """Name every variant's data files in `config.json`, with a dtype for each device; returns that entry.

    A file that is not announced loads in Node and fails in a browser.
    """
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    external, there = {}, set()
    for variant in LOADING:
        file = out / "onnx" / model_file(variant)
        if file.exists():
            there.add(LOADING[variant][1] if LOADING[variant][0] == "model" else variant)
        if data_files(file):
            external[file.name] = len(data_files(file))
    entry: dict = {"use_external_data_format": external}
    devices = {device: {"dtype": dtype} for device, dtype in DEVICE_DTYPES.items() if dtype in there}
    if devices:
        entry["device_config"] = devices
    config["transformers.js_config"] = entry
    _write_json(out / "config.json", config)
    return entry


def data_files(model: Path) -> list[Path]:
    """The external data of an .onnx file, in order."""
    return sorted(model.parent.glob(model.name + "_data*"), key=lambda path: (len(path.name), path.name))


def variant_bytes(out: Path, variant: str) -> int:
    """Bytes of a variant's .onnx file with its data."""
    file = out / "onnx" / model_file(variant)
    return sum(path.stat().st_size for path in (file, *data_files(file)))


def op_counts(model: Path) -> dict[str, int]:
    """How often each operator occurs in an .onnx file, most frequent first."""
    from collections import Counter

    import onnx

    nodes = onnx.load(str(model), load_external_data=False).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


def _write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _run_optimum(fused: Path, out: Path) -> int:
    """Run optimum-onnx offline, its words to a log; returns the peak memory in the unit of `ru_maxrss`."""
    work = out / "onnx" / ".optimum"
    shutil.rmtree(work, ignore_errors=True)
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(fused),
               "--task", "text-generation-with-past", "--no-post-process", str(work)]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    log.info("%s\n%s%s", " ".join(command), done.stdout, done.stderr)
    if done.returncode or not (work / "model.onnx").exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ExportError(f"optimum failed ({done.returncode}): {lines[-1]}")
    for path in [*data_files(out / "onnx" / "model.onnx"), out / "onnx" / "model.onnx"]:
        path.unlink(missing_ok=True)
    for path in work.glob("model.onnx*"):
        shutil.move(path, out / "onnx" / path.name)
    shutil.rmtree(work)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
