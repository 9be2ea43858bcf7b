"""One generator for each runtime, and constrained decoding."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "constrained": ["Constraint", "Grammar"],
        "drafts": ["Drafts", "DraftSource", "NgramTable"],
        "mlx": ["MlxGenerator"],
        "node": ["NodeError", "NodeGenerator", "find_node"],
        "onnxruntime": ["OrtGenerator"],
        "protocols": ["Generator"],
    },
)
