"""Official splits: what a data set's own files, keys or rows say about training, validation and test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .files import DataError
from .parts import kind_of

SPLITS = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_FILE = re.compile(rf"({'|'.join(SPLITS)})([-_.]?\d[\w.-]*)?")  # train, train-00000-of-00002


def split_of(name: Any) -> str | None:
    """`train`, `valid` or `test` for a name of theirs, in small or capital letters; None for anything else."""
    return SPLITS.get(name.strip().casefold()) if isinstance(name, str) else None


def file_splits(files: list[Path], folder: Path) -> dict[Path, str]:
    """The split of each file of a folder that is named after one, or that stands in a sub-folder named after one.

    Empty where they name fewer than two splits: the folder is then no data set with splits of its own.
    """
    found = {}
    for file in files if folder.is_dir() else []:
        first, *inner = file.relative_to(folder).parts
        match = _FILE.fullmatch((first if inner else file.stem).casefold())
        if match:
            found[file] = SPLITS[match[1]]
    return found if len(set(found.values())) > 1 else {}


def rows_of_splits(value: Any) -> list[tuple[str, Any]] | None:
    """(split, row) of an object `{"train": [rows], "valid": [rows], "test": [rows]}`; None for any other value.

    Raises DataError where a split is not a list of rows.
    """
    if not isinstance(value, dict) or not any(split_of(key) and isinstance(value[key], list) for key in value):
        return None
    rows = []
    for key, part in value.items():
        if split_of(key) is None:
            raise DataError(
                f"{key!r} stands beside the splits: only lists of rows under train, valid and test are read"
            )
        if not isinstance(part, list):
            raise DataError(f"{key!r} must be a list of rows, not {kind_of(part)}")
        rows += [(split_of(key), row) for row in part]
    return rows


def take_mark(item: Any) -> tuple[str | None, Any]:
    """(the split that a row is marked with, the row without that mark).

    A mark is `"split"`, `"metadata": {"split"}`, or the text under "metadata" that Mobile Actions has. A value that
    names no split stays in the row.
    """
    if isinstance(item, dict):
        metadata = item.get("metadata")
        inner = metadata.get("split") if isinstance(metadata, dict) else metadata
        for key, value in (("split", item.get("split")), ("metadata", inner)):
            if split := split_of(value):
                return split, {name: held for name, held in item.items() if name != key}
    return None, item
