"""A second graph over the weights of a quantised variant, for WebAssembly: DequantizeLinear nodes in QDQ style.

onnxruntime's WASM build has no kernel for MatMulNBits: it unpacks every matrix anew at every step. In this graph each
MatMulNBits is a DequantizeLinear and a plain matrix product, over the very same bytes. With the session config entries
`SESSION`, onnxruntime unpacks them once, when it loads the model. That costs memory (four bytes a weight) and saves
most of the time of a token.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

#: Session config entries without which onnxruntime would turn the nodes back into MatMulNBits.
SESSION = {"session.disable_quant_qdq": "1"}
#: Weights in one product. While a matrix is unpacked it is in memory twice, so larger ones are cut by rows.
MAX_WEIGHTS = 2**25
MS = "com.microsoft"


def write_dequantized(graph: str | Path, out: str | Path) -> bool:
    """Write to `out` (same folder: it shares the data file) what `graph` computes; False where no MatMulNBits is."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    nodes, tensors = [], []
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            packed = PackedMatMul(node, stored, casts, Path(graph).parent)
            nodes += packed.products()
            tensors += packed.tensors
        else:
            nodes.append(node)
    if not tensors:
        return False
    read = {name for node in nodes for name in node.input} | {item.name for item in model.graph.output}
    nodes = [node for node in nodes if read.intersection(node.output)]  # without casts of scales that nobody reads now
    read = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in [*model.graph.initializer, *tensors] if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(tensors)
    onnx.save(model, str(out))
    return True


class PackedMatMul:
    """A MatMulNBits node: its matrix `[rows, width]`, where it is stored, and what replaces it."""

    def __init__(self, node, stored: dict, casts: dict, folder: Path):
        from onnx import TensorProto, helper

        about = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.rows, self.width, self.block = about["N"], about["K"], about["block_size"]
        self.blocks = self.width // self.block
        self.kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8}[about["bits"]]
        self.folder = folder
        self.x, qweight, scales, zeros = node.input
        self.output = node.output[0]
        self.qweight, self.zeros = stored[qweight], stored[zeros]
        self.scales = stored[casts.get(scales, scales)]  # stored as float16, cast to float32 in a float32 graph
        self.tensors: list = []

    def products(self) -> list:
        """Nodes that make the same output, by parts of the rows where the matrix is large; fills `tensors`."""
        from onnx import helper

        step = min(self.rows, max(1, MAX_WEIGHTS // self.width))
        starts = range(0, self.rows, step)
        outputs = [f"{self.output}.dequantized.{start}" for start in starts] if len(starts) > 1 else [self.output]
        nodes = []
        for start, output in zip(starts, outputs, strict=True):
            nodes += self._product(start, min(step, self.rows - start), output)
        if len(outputs) > 1:
            nodes.append(helper.make_node("Concat", outputs, [self.output], name=f"{self.output}/Concat", axis=-1))
        return nodes

    def _product(self, start: int, count: int, output: str) -> list:
        """Cast, DequantizeLinear and product for `count` rows of the matrix."""
        from onnx import TensorProto, helper

        base = f"{self.output}.dequantized.{start}"
        qweight, half, scales, zeros, weight = (f"{base}.{w}" for w in ("qweight", "half", "scales", "zeros", "weight"))
        self.tensors += [
            self._part(self.qweight, qweight, self.kind, start, (count, self.width)),
            self._part(self.scales, half, self.scales.data_type, start, (count, self.blocks)),
            self._zeros(zeros, start, count),
        ]
        unpack = {"axis": 1, "block_size": self.block}
        return [
            helper.make_node("Cast", [half], [scales], name=scales, to=TensorProto.FLOAT),
            helper.make_node("DequantizeLinear", [qweight, scales, zeros], [weight], name=weight, **unpack),
            helper.make_node("FusedMatMul", [self.x, weight], [output], f"{output}/product", domain=MS, transB=1),
        ]

    def _zeros(self, name: str, start: int, count: int):
        """Zero points of the rows; MatMulNBits begins each row with a byte of its own, DequantizeLinear does not."""
        from onnx import TensorProto

        if self.kind == TensorProto.UINT8 or self.blocks % 2 == 0:
            return self._part(self.zeros, name, self.kind, start, (count, self.blocks))
        stored = self._zero_bytes[start : start + count]
        zeros = np.stack([stored & 15, stored >> 4], -1).reshape(count, -1)[:, : self.blocks]
        pairs = np.pad(zeros.ravel(), (0, zeros.size % 2))
        made = TensorProto(name=name, data_type=self.kind, dims=zeros.shape)
        made.raw_data = (pairs[0::2] | pairs[1::2] << 4).tobytes()
        return made

    @functools.cached_property
    def _zero_bytes(self) -> np.ndarray:
        """The packed zero points, uint8 [rows, bytes]."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.zeros, str(self.folder)).reshape(self.rows, -1)

    def _part(self, tensor, name: str, kind: int, start: int, shape: tuple[int, int]):
        """Rows from `start` of a stored matrix, the same bytes, read as `shape` of `kind`."""
        from onnx import TensorProto

        made = TensorProto(name=name, data_type=kind, dims=shape)
        if tensor.data_location != TensorProto.EXTERNAL:
            size = len(tensor.raw_data) // self.rows
            made.raw_data = tensor.raw_data[start * size : (start + shape[0]) * size]
            return made
        where = {item.key: item.value for item in tensor.external_data}
        size = int(where["length"]) // self.rows
        made.data_location = TensorProto.EXTERNAL
        offset = int(where["offset"]) + start * size
        for key, value in (("location", where["location"]), ("offset", offset), ("length", shape[0] * size)):
            made.external_data.add(key=key, value=str(value))
        return made
