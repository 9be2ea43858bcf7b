"""Examples of files as chat rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .chat import from_chat
from .files import DataError, json_files, read_json
from .original import from_original


def read_examples(path: Path, tools: list[dict]) -> list[dict]:
    """Chat rows of an examples file, or of a folder of them: the seed's format or rows with "messages".

    Raises DataError for anything else.
    """
    files = json_files(path)
    if not files:
        raise DataError(f"{path} holds no .json or .jsonl file with examples")
    rows = [row for file in files for row in _rows_of(file, tools)]
    doubled = [i for i, n in Counter(row["id"] for row in rows).items() if n > 1]
    if doubled:
        raise DataError(
            f"{path.name}: the id {doubled[0]!r} is there {len([r for r in rows if r['id'] == doubled[0]])} times"
        )
    return rows


def _rows_of(file: Path, tools: list[dict]) -> list[dict]:
    value = read_json(file)
    if isinstance(value, dict):
        value = value.get("examples", value.get("data", [value]))
    if not isinstance(value, list) or not value:
        raise DataError(f"{file.name}: expected a list of examples")
    rows = []
    for i, item in enumerate(value):
        where = f"{file.name}, example {i + 1}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: expected an object, found {type(item).__name__}")
        if "messages" in item:
            row = from_chat(item, tools, where)
        elif "userQuery" in item:
            row = from_original(item, tools, where)
        else:
            known = ", ".join(sorted(item)) or "nothing"
            raise DataError(f'{where}: neither "userQuery" nor "messages" is there (found {known})')
        rows.append({"id": str(item.get("id", f"{file.stem}-{i + 1:04d}")), **row})
    return rows
