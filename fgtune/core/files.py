"""JSON and hashes of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value) -> None:
    """Write `value` as JSON, indented by two spaces, keys in their order, with a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def hash_files(folder: Path) -> dict[str, dict]:
    """Bytes and sha256 of every file below a folder but its manifest (`stage.json`), by path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "stage.json")
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files}


def verify_files(folder: Path, hashes: dict[str, dict]) -> str | None:
    """What of a folder's files does not match what `hash_files` found (one phrase), or None."""
    for name, want in hashes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != want["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, the manifest says {want['bytes']:,}"
        if file_sha256(path) != want["sha256"]:
            return f"{name} has changed since it was written"
    return None


@contextlib.contextmanager
def stderr_to(path: Path):
    """Send what this process and its children write to file descriptor 2 to a log."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(path, "wb") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
