"""Weights by name, from safetensors or from an fp32 export."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.errors import ExportError
from ..models.gemma3 import EMBEDDING


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


class OnnxWeights:
    """The matrices and norms of a `direct` fp32 export by name, mapped from its data file, not loaded.

    `positions` is the longest sequence that the export allows. Raises ExportError when the file is none.
    """

    def __init__(self, path: Path):
        import onnx

        if not path.exists():
            raise ExportError(f"{path} does not exist: export first")
        model = onnx.load(str(path), load_external_data=False)
        props = {item.key: item.value for item in model.metadata_props}
        if props.get("fgtune.exporter") != "direct" or props.get("fgtune.residual_scale") != "1.0":
            raise ExportError(f"{path} is no fp32 export of this workbook: variants are made from exporter 'direct'")
        self.positions = int(props["fgtune.positions"])
        self._folder = path.parent
        self._tensors = {item.name: item for item in model.graph.initializer}

    def _array(self, name: str) -> np.ndarray:
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        where = {item.key: item.value for item in tensor.external_data}
        return np.memmap(self._folder / where["location"], np.float32, "r", int(where["offset"]), tuple(tensor.dims))

    def matrix(self, name: str) -> np.ndarray:
        """float32 [out, in] of a projection, [vocab, hidden] of the embedding."""
        array = self._array(f"{name}.weight")
        return array if name == EMBEDDING else array.T

    def norm(self, name: str) -> np.ndarray:
        """What an RMS norm multiplies by, float32."""
        return self._array(f"{name}.weight")
