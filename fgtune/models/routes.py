"""What the routes to a base model share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..core.files import file_sha256
from ..format.template import TEMPLATE_FILE

PYPI_MODEL = "pypi:gemma3-270m"


RECIPE = 4  # raise it when what is written below changes, so that old caches are not taken for new ones


class BaseModelError(RuntimeError):
    """The base model cannot be had; the message is one line that says what to do."""


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
    return file_sha256(TEMPLATE_FILE)[:8]
