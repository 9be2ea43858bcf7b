"""JSON and JSONL files, with the place of what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """The user's tools or examples cannot be read; the message names the file, the place and the remedy."""


def read_json(path: Path) -> Any:
    """Parsed JSON, or a list of the lines of a `.jsonl` file. Raises DataError with line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                rows.append(_loads(line, path, number))
        return rows
    return _loads(text, path)


def _loads(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}, line {line or error.lineno}, column {error.colno}: {error.msg}") from None


def json_files(path: Path) -> list[Path]:
    """The JSON and JSONL files of a folder, in order of name; or the file that `path` is."""
    return sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
