"""JSON, JSONL and CSV files, with the place of what cannot be read."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from ...core.files import file_sha256
from ...format.findings import one_line

LINE_SUFFIXES = (".jsonl", ".ndjson")
JSON_SUFFIXES = (".json", *LINE_SUFFIXES)
SUFFIXES = (*JSON_SUFFIXES, ".csv")


class DataError(ValueError):
    """The user's tools or examples cannot be read.

    `message` says what is wrong and what to do; `file` and `row` say where, as far as it is known.
    """

    def __init__(self, message: str, file: str = "", row: str = ""):
        place = ", ".join(part for part in (file, row) if part)
        message = one_line(message)
        super().__init__(f"{place}: {message}" if place else message)
        self.message, self.file, self.row = message, file, row

    def at(self, file: str, row: str = "") -> DataError:
        """The same error with its place."""
        return DataError(self.message, file, row)


def read_json(path: Path) -> Any:
    """The parsed value of a JSON file, or the list of the values of its lines.

    Lines in a `.json` file and an array in a `.jsonl` file are read as well; a `.jsonl` file is always a list. Lines
    end at `\\n` only: U+2028, U+2029 and U+0085 are part of the text. Raises DataError with line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    by_line = path.suffix.lower() in LINE_SUFFIXES
    if by_line and not text.strip():
        return []
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        first = next((line for line in text.split("\n") if line.strip()), "")
        if (by_line and first.strip() != "[") or _is_json(first):
            return _read_lines(text, path)
        raise _syntax_error(error, path, error.lineno) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, a thousand brackets
        raise DataError(f"{path.name} cannot be read: {error}") from None
    return [value] if by_line and not isinstance(value, list) else value


def _read_lines(text: str, path: Path) -> list:
    """The values of the lines; a line that is a list gives its items."""
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise _syntax_error(error, path, number) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path.name}, line {number} cannot be read: {error}") from None
            values += value if isinstance(value, list) else [value]
    return values


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _syntax_error(error: json.JSONDecodeError, path: Path, line: int) -> DataError:
    return DataError(f"{path.name}, line {line}, column {error.colno}: {error.msg}")


def read_csv(path: Path) -> list[list[str]]:
    """The rows of a CSV file, empty ones left out. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path.name} is no CSV file: {error}") from None


def json_files(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The JSON, JSONL and CSV files of a folder and its sub-folders, in order of name; or the file that `path` is.

    Hidden files and folders (their names begin with a dot) are left out.
    """
    return [file for file in _files(path) if file.suffix.lower() in suffixes] if path.is_dir() else [path]


def digest_of(path: Path) -> str:
    """sha256 of a file, or of the JSON, JSONL and CSV files of a folder."""
    if path.is_file():
        return file_sha256(path)
    return hashlib.sha256("".join(f"{p.name}:{file_sha256(p)}\n" for p in json_files(path)).encode()).hexdigest()


def other_files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder that are not read, documentation (`.md`) left out."""
    known = (*suffixes, ".md")
    return [file for file in _files(path) if file.suffix.lower() not in known] if path.is_dir() else []


def _files(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in inside if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
