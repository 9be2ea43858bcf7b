"""The fused model as ONNX: the graph, its writers, the layout that transformers.js reads."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "decoder": ["write_decoder"],
        "graph": ["Graph"],
        "layout": ["VARIANTS", "Variant", "model_file"],
        "onnx": ["ExportReport", "export_onnx"],
        "weights": ["OnnxWeights", "SafetensorsWeights"],
        "writers": ["Float32Writer", "WeightWriter"],
    },
)
