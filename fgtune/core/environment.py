"""What a result depends on beside its inputs: seeds, and versions of packages."""

from __future__ import annotations

import platform
import random
import sys
from importlib import metadata

from . import blas

PACKAGES = ("mlx", "mlx-lm", "transformers", "torch", "onnx", "onnxruntime", "optimum-onnx", "numpy")


def seed_all(seed: int, mlx: bool) -> None:
    """Seed Python, NumPy and, where it is used, MLX."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if mlx:
        blas.mlx().random.seed(seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}"}
    for name in PACKAGES:
        found[name] = next((d.version for d in metadata.distributions(name=name)), "not installed")
    return found
