"""An ONNX graph under construction."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

INLINE_BYTES = 8192  # smaller tensors stay in the .onnx file
OPSET, IR_VERSION = 21, 10
MICROSOFT_OPS = {"GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"}


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
