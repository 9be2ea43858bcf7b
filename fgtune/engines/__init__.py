"""What computes: a training step over a shared prefix, and decoders, by MLX, torch and onnxruntime."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "argmax": ["ExactArgmax"],
        "mlx_decoder": ["MlxDecoder"],
        "mlx_forward": ["Prefix", "run_prefix", "run_rows"],
        "mlx_step": ["MlxEngine", "shared_loss"],
        "ort": ["OrtError", "OrtModel"],
        "protocols": ["Decoder", "StepEngine"],
        "torch_decoder": ["TorchDecoder"],
        "torch_step": ["TorchEngine"],
    },
)
