"""Where the WebAssembly kernels (web/kernels/) find a variant's weights: the ONNX graph, read into a small JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import DeployError
from ..export.layout import model_file, read_config
from ..models import gemma3
from ..models.gemma3 import Gemma3Config, layer_tensor
from ..quantize.writer import HIGH_PRECISION_ROWS

KERNEL_FORMAT = 1  # of the layout; the same number stands in web/kernels/decoder.js
BLOCKS = (32, 64, 128, 256)
MOST_BLOCKS = 512  # in a row, as in web/kernels/decoder.c
#: Parts of a layer in the layout, and the projections that are one product there.
PRODUCTS = {"qkv": gemma3.QUERY_KEY_VALUE, "out": gemma3.ATTENTION_OUT, "gate_up": gemma3.GATE_UP, "down": gemma3.DOWN}
NORMS = {
    "input_norm": gemma3.INPUT_NORM,
    "query_norm": gemma3.QUERY_NORM,
    "key_norm": gemma3.KEY_NORM,
    "post_attention_norm": gemma3.POST_ATTENTION_NORM,
    "pre_feedforward_norm": gemma3.PRE_FEEDFORWARD_NORM,
    "post_feedforward_norm": gemma3.POST_FEEDFORWARD_NORM,
}


def kernel_layout(model_dir: str | Path, variant: str) -> dict:
    """What web/kernels/decoder.js needs to load `variant` of the folder that `quantize` wrote.

    Tensors are `{"file", "offset", "length"}` in bytes of a file beside the graph, or `{"offset", "length"}` of
    `inline` (base64): small ones stand in the graph itself. A matrix has `rows`, `width`, `bits`, `block`, `qweight`,
    `scales` of `scale_bits`, and `zero_points` or None. Norms are float32 factors (Gemma's 1 + weight). Raises
    DeployError for a graph that the kernels cannot run: float16, matrices that are not quantised, or other shapes.
    """
    folder = Path(model_dir)
    config = Gemma3Config.from_dict(read_config(folder))
    graph = _Graph(folder / "onnx" / model_file(variant))
    layers = [_layer(graph, config, i) for i in range(config.layers)]
    _check(graph, config, layers)
    return {
        "format": KERNEL_FORMAT,
        "variant": variant,
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "inner": layers[0]["down"][0]["width"],
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "positions": int(graph.metadata["fgtune.positions"]),
        "eps": config.rms_norm_eps,
        "attention_scale": config.attention_scale,
        "embedding_scale": float(config.embedding_scale),
        "ropes": {kind: rope.frequencies(config.head_dim)[0].tolist() for kind, rope in config.rope.items()},
        "embedding": _embedding(graph),
        "layers": layers,
        "final_norm": graph.norm(gemma3.FINAL_NORM),
        "inline": base64.b64encode(graph.inline).decode(),
    }


class _Graph:
    """The nodes and tensors of a variant's graph by name; `inline` collects the bytes of those inside it."""

    def __init__(self, path: Path):
        import onnx

        if not path.exists():
            raise DeployError(f"{path} does not exist: quantize the variant first")
        model = onnx.load(str(path), load_external_data=False)
        self.name = path.name
        self.metadata = {item.key: item.value for item in model.metadata_props}
        if self.metadata.get("fgtune.exporter") != "direct":
            raise DeployError(f"{path} is not a graph of this project: the kernels cannot run it")
        self.half = any(item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for item in model.graph.input)
        self.tensors = {item.name: item for item in model.graph.initializer}
        self.casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        self.products = {node.output[0]: node for node in model.graph.node if node.op_type == "MatMulNBits"}
        self.inline = bytearray()

    def tensor(self, name: str) -> dict:
        """Where the bytes of a stored tensor lie."""
        from onnx import TensorProto, numpy_helper

        if name not in self.tensors:
            raise DeployError(f"{self.name} does not store {name}: the kernels cannot run it")
        stored = self.tensors[name]
        if stored.data_location == TensorProto.EXTERNAL:
            where = {item.key: item.value for item in stored.external_data}
            return {"file": where["location"], "offset": int(where["offset"]), "length": int(where["length"])}
        self.inline += bytes(-len(self.inline) % 8)
        offset, data = len(self.inline), numpy_helper.to_array(stored).tobytes()
        self.inline += data
        return {"offset": offset, "length": len(data)}

    def norm(self, name: str) -> dict:
        """The factors of a norm, float32."""
        return self._typed(f"{name}.weight", np.float32)[0]

    def matrix(self, product: str) -> dict:
        """The matrix of the MatMulNBits node that gives `product`."""
        from onnx import helper

        node = self.products[product]
        sizes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        rows, width, bits, block = (sizes[key] for key in ("N", "K", "bits", "block_size"))
        if bits not in (4, 8) or block not in BLOCKS or width % block or width // block > MOST_BLOCKS:
            raise DeployError(
                f"{product} has {bits} bits in blocks of {block} over {width}: the kernels run 4 or 8 bits in whole "
                f"blocks of {', '.join(map(str, BLOCKS))}"
            )
        if len([name for name in node.input if name]) > 4:
            raise DeployError(f"{product} has a bias or an order of its own: the kernels cannot run it")
        qweight, _ = self._typed(node.input[1], np.uint8)
        scales, kind = self._typed(self.casts.get(node.input[2], node.input[2]), np.float16, np.float32)
        zeros = self._typed(node.input[3], np.uint8)[0] if len(node.input) > 3 and node.input[3] else None
        return {"rows": rows, "width": width, "bits": bits, "block": block, "qweight": qweight, "scales": scales,
                "scale_bits": kind.itemsize * 8, "zero_points": zeros}  # fmt: skip

    def _typed(self, name: str, *dtypes) -> tuple[dict, np.dtype]:
        from onnx import helper

        where = self.tensor(name)
        dtype = helper.tensor_dtype_to_np_dtype(self.tensors[name].data_type)
        if dtype not in dtypes:
            raise DeployError(f"{name} is {dtype}: the kernels cannot run it")
        return where, dtype


def _layer(graph: _Graph, config: Gemma3Config, index: int) -> dict:
    found: dict = {name: _parts(graph, index, members) for name, members in PRODUCTS.items()}
    found["norms"] = {name: graph.norm(layer_tensor(index, tensor)) for name, tensor in NORMS.items()}
    return found | {"window": config.window(index) or 0, "rope": config.kinds[index]}


def _parts(graph: _Graph, layer: int, members: Sequence[str]) -> list[dict]:
    """The matrices of projections that read the same input: neighbours of the same bits are one."""
    left, parts = [layer_tensor(layer, name) for name in members], []
    while left:
        count = next((n for n in range(len(left), 0, -1) if "+".join(left[:n]) in graph.products), 0)
        if not count:
            raise DeployError(f"{left[0]} of {graph.name} is not quantised: the kernels run matrices of 4 or 8 bits")
        parts.append(graph.matrix("+".join(left[:count])))
        left = left[count:]
    return parts


def _embedding(graph: _Graph) -> dict:
    """The table that is the head too; the rows of it that have more bits, and which tokens they are (int64)."""
    if "lm_head.high_precision" in graph.products:
        table, precise = graph.matrix("lm_head.all"), graph.matrix("lm_head.high_precision")
        if table["bits"] == precise["bits"]:
            raise DeployError(f"{HIGH_PRECISION_ROWS} has the bits of the whole table: the kernels cannot run it")
        return {"table": table, "precise": precise, "token_ids": graph.tensor("lm_head.token_ids")}
    if "logits" not in graph.products:
        raise DeployError(f"the embedding of {graph.name} is not quantised: the kernels run 4 or 8 bits")
    return {"table": graph.matrix("logits"), "precise": None, "token_ids": None}


def _check(graph: _Graph, config: Gemma3Config, layers: list[dict]) -> None:
    """Raise DeployError where the kernels' arithmetic is not the graph's."""
    if graph.half or graph.metadata.get("fgtune.residual_scale", "1.0") != "1.0":
        raise DeployError(f"{graph.name} computes in float16: the kernels compute in float32")
    if config.hidden_size % 16 or config.head_dim % 16 or config.heads % config.kv_heads:
        sizes = f"hidden size {config.hidden_size} and {config.heads} heads of {config.head_dim}"
        raise DeployError(f"{graph.name} has {sizes}: the kernels need multiples of 16")
    for layer in layers:
        for name in PRODUCTS:
            if len({(part["width"], part["block"]) for part in layer[name]}) > 1:
                raise DeployError(f"a {name} of {graph.name} has blocks of two sizes: the kernels cannot run it")
